"""The vendored compiler is the file that its README names, and the code knows it."""

import hashlib

import pytest

from worker.ink.compiler import BUNDLE, compile_story, patched_bundle
from worker.ink.errors import CompilerBrokenError


def test_the_bundle_has_the_hash_in_its_readme() -> None:
    digest = hashlib.sha256(BUNDLE.read_bytes()).hexdigest()

    assert f"| SHA-256 | `{digest}` |" in (BUNDLE.parent / "README.md").read_text()


def test_a_whole_float_stays_a_float() -> None:
    assert '"ev",7.0,2,"/","out"' in compile_story({"story.ink": "{7.0 / 2}"}).json


def test_a_text_that_looks_like_a_marked_float_stays_text() -> None:
    assert '"^@@F3.0"' in compile_story({"story.ink": "@@F3.0"}).json


@pytest.mark.parametrize("source", ["nothing", "WriteFloat(a){} WriteFloat(b){}"])
def test_another_float_writer_is_refused(source: str) -> None:
    with pytest.raises(CompilerBrokenError, match="expected one float writer"):
        patched_bundle(source)


def test_the_licence_lies_beside_it() -> None:
    assert (BUNDLE.parent / "LICENSE").read_text().startswith("MIT License")
