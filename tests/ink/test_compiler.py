"""What an author's files may look like, and what the author is told."""

import pytest

from worker.ink.compiler import compile_story
from worker.ink.errors import Problem, StoryInvalidError


def problems_of(**files: str) -> tuple[Problem, ...]:
    with pytest.raises(StoryInvalidError) as caught:
        compile_story({name.replace("_", "."): text for name, text in files.items()})
    return caught.value.problems


def test_an_error_has_its_file_and_line() -> None:
    assert problems_of(story_ink="Hello.\n\n-> nowhere\n") == (
        Problem("error", "Divert target not found: '-> nowhere'", "story.ink", 3),
    )


def test_an_error_in_an_included_file_has_that_file_and_its_line() -> None:
    found = problems_of(story_ink="INCLUDE cellar.ink\nHello.\n", cellar_ink="Dark.\n-> nowhere\n")

    assert found == (Problem("error", "Divert target not found: '-> nowhere'", "cellar.ink", 2),)


def test_the_error_prints_as_editors_like_it() -> None:
    with pytest.raises(StoryInvalidError) as caught:
        compile_story({"story.ink": "{\n"})

    assert str(caught.value).startswith("story.ink:1: error: Expected")


def test_warnings_and_notes_are_told_and_do_not_stop_it() -> None:
    text = "-> hall\n=== hall\nTODO: describe it\nA hall.\n"

    found = compile_story({"story.ink": text}).problems

    assert {(p.severity, p.file, p.line) for p in found} == {
        ("note", "story.ink", 3),
        ("warning", "story.ink", 4),
    }


@pytest.mark.parametrize("name", ["../secret.ink", "/etc/passwd", "deeper/none.ink", "none.ink"])
def test_an_include_reaches_only_the_files_that_were_given(name: str) -> None:
    (found,) = problems_of(story_ink=f"Hello.\nINCLUDE {name}\n")

    assert (found.file, found.line) == ("story.ink", 2)
    assert name in found.message


@pytest.mark.parametrize("name", ["../b.ink", "/b.ink", "a/../b.ink", "a\\b.ink", "c:b.ink", ""])
def test_a_file_outside_of_the_story_is_refused(name: str) -> None:
    with pytest.raises(StoryInvalidError, match="outside of the story's folder"):
        compile_story({"story.ink": "Hello.", name: "World."})


def test_a_file_in_a_folder_of_the_story_can_be_included() -> None:
    files = {
        "story.ink": "INCLUDE rooms/hall.ink\n-> hall\n",
        "rooms/hall.ink": "== hall\n-> END\n",
    }

    assert compile_story(files).problems == ()


def test_files_that_include_each_other_are_an_error() -> None:
    (found,) = problems_of(story_ink="INCLUDE b.ink\n", b_ink="INCLUDE story.ink\n")

    assert "Recursive INCLUDE" in found.message


def test_a_missing_main_file_is_an_error() -> None:
    (found,) = problems_of(other_ink="Hello.")

    assert found.file == "story.ink"


def test_byte_order_marks_are_accepted() -> None:
    files = {
        "story.ink": "\ufeffINCLUDE b.ink\n-> hall\n",
        "b.ink": "\ufeff=== hall\nHi.\n-> END\n",
    }

    assert "\ufeff" not in compile_story(files).json


def test_a_number_beyond_32_bits_is_an_error_with_its_line() -> None:
    (found,) = problems_of(story_ink="Hello.\n{1 + 99999999999}\n-> END\n")

    assert (found.file, found.line) == ("story.ink", 2)


def test_too_much_nesting_is_an_error() -> None:
    (found,) = problems_of(story_ink="{" + "(" * 5000 + "1" + ")" * 5000 + "}\n")

    assert found.message == "the story is nested too deep to compile"


def test_time_is_limited() -> None:
    with pytest.raises(StoryInvalidError, match="takes too long"):
        compile_story({"story.ink": "Hello.\n" * 2000}, seconds=0.01)


def test_memory_is_limited() -> None:
    with pytest.raises(StoryInvalidError, match="takes too much memory"):
        compile_story({"story.ink": "Hello.\n" * 5000}, memory_bytes=8 << 20)
