"""Which stories a folder holds, and which engines are kept."""

from pathlib import Path

import pytest

from worker.ink.compiler import compile_story
from worker.ink.errors import StoryInvalidError, StoryNameTakenError, StoryNotFoundError
from worker.ink.library import StoryLibrary, card_of, hash_of, read_story

STORY = "Hello.\n-> END\n"


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.ink").write_text(text)


def test_stories_are_folders_and_single_files(tmp_path: Path) -> None:
    write(tmp_path / "a", lantern=STORY)
    write(tmp_path / "b" / "well-2", story="INCLUDE deep.ink\n", deep=STORY)
    write(tmp_path / "b" / "notes", todo="no story here")
    (tmp_path / "b" / "README.md").write_text("no story either")

    sources = StoryLibrary([tmp_path / "a", tmp_path / "b"]).sources()

    assert {name: (s.main, sorted(s.files)) for name, s in sources.items()} == {
        "lantern": ("lantern.ink", ["lantern.ink"]),
        "well-2": ("story.ink", ["deep.ink", "story.ink"]),
    }
    assert sources["well-2"].hash == hash_of({"story.ink": "INCLUDE deep.ink\n", "deep.ink": STORY})


def test_a_hash_depends_on_every_text_and_name() -> None:
    hashes = {
        hash_of(files)
        for files in (
            {"story.ink": STORY},
            {"story.ink": STORY + " "},
            {"other.ink": STORY},
            {"story.ink": STORY, "b.ink": ""},
            {"story.inkb": ".ink" + STORY},
        )
    }

    assert len(hashes) == 5


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ink").write_bytes(b"\xef\xbb\xbf" + STORY.encode())

    assert read_story(tmp_path / "a.ink").files == {"a.ink": STORY}


def test_two_stories_of_one_name_are_both_named(tmp_path: Path) -> None:
    write(tmp_path / "a", well=STORY)
    write(tmp_path / "b" / "well", story=STORY)

    with pytest.raises(StoryNameTakenError) as caught:
        StoryLibrary([tmp_path / "a", tmp_path / "b"]).sources()

    assert str(tmp_path / "a" / "well.ink") in str(caught.value)
    assert str(tmp_path / "b" / "well") in str(caught.value)


@pytest.mark.parametrize("name", ["Well", "the_well", "brunnen ä"])
def test_a_name_has_few_letters(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.ink").write_text(STORY)

    with pytest.raises(StoryInvalidError, match="a-z, 0-9"):
        StoryLibrary([tmp_path]).sources()


def test_a_file_that_is_not_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.ink").write_bytes(b"Hello.\nna\xefve\n")

    with pytest.raises(StoryInvalidError) as caught:
        StoryLibrary([tmp_path]).sources()

    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.message) == ("a.ink", 2, "not UTF-8 text")


def test_a_link_out_of_the_story_is_refused(tmp_path: Path) -> None:
    write(tmp_path, secret="secret")
    write(tmp_path / "stories" / "well", story="INCLUDE other.ink\n")
    (tmp_path / "stories" / "well" / "other.ink").symlink_to(tmp_path / "secret.ink")

    with pytest.raises(StoryInvalidError, match="outside"):
        StoryLibrary([tmp_path / "stories"]).sources()


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ink").write_text("x" * ((4 << 20) + 1))

    with pytest.raises(StoryInvalidError, match="4 MiB"):
        StoryLibrary([tmp_path]).sources()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoryNotFoundError, match="no folder"):
        StoryLibrary([tmp_path / "none"]).sources()


class TestEngines:
    def compiled(self, text: str) -> str:
        return compile_story({"story.ink": f"{text}\n-> END\n"}).json

    def test_an_old_version_is_played_from_the_callers_store(self) -> None:
        store = {"old": self.compiled("Old."), "new": self.compiled("New.")}
        library = StoryLibrary([])

        assert library.engine("old", store.get).advance().text == "Old."
        assert library.engine("new", store.get).advance().text == "New."
        assert library.engine("old", store.get).hash == "old"

    def test_an_engine_is_loaded_once(self) -> None:
        asked: list[str] = []
        library = StoryLibrary([])

        def load(story_hash: str) -> str:
            asked.append(story_hash)
            return self.compiled("Hello.")

        engine = library.engine("h", load)

        assert library.engine("h", load) is engine
        assert library.held("h") is engine
        assert library.held("other") is None
        assert asked == ["h"]

    def test_the_engines_used_last_are_held(self) -> None:
        library = StoryLibrary([], held=2)
        compiled = self.compiled("Hello.")

        for name in ("a", "b", "a", "c"):
            library.engine(name, lambda _: compiled)

        assert [name for name in "abc" if library.held(name)] == ["a", "c"]

    def test_a_hash_that_nobody_knows_is_an_error(self) -> None:
        with pytest.raises(StoryNotFoundError, match="abc"):
            StoryLibrary([]).engine("abc", lambda _: None)


def test_a_card_is_made_of_the_global_tags() -> None:
    card = card_of("the-well", ["Title: The Well", "author: A. B.", "description: Wet: very."])

    assert (card.title, card.author, card.description) == ("The Well", "A. B.", "Wet: very.")
    assert card_of("the-well", []).title == "The well"
