"""The documents that say which test shows what name tests that exist."""

import re

import pytest

from deploy.local.server import ROOT


@pytest.mark.parametrize("document", ["proofs", "mutants"])
def test_the_tests_that_a_document_names_are_there(document: str) -> None:
    text = (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)[^`]*`", text)
    assert len(named) > 30
    files = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}

    assert [one for one in named if f"def {one[1]}(" not in files[one[0]]] == []
