"""Skills: folders that are read on demand and never left."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_core import Skill, SkillError, ToolCall, ToolContext, ToolExecutor, ToolRegistry
from agent_core.skills import load_skills
from tests.agent_core.agents import text_of


def write_skill(root: Path, folder: str, header: str, body: str = "Do it.") -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "SKILL.md").write_text(f"---\n{header}\n---\n{body}\n")
    return path


def test_skills_are_listed_and_read(tmp_path: Path) -> None:
    write_skill(tmp_path, "maps", 'name: maps\ndescription: "Draw maps."', "# Maps\nFirst a coast.")
    folded = "name: boats\ndescription: >\n  Row\n  and sail.\nlicense: none\n# a comment"
    write_skill(tmp_path, "boats", folded)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("not a skill")

    skills = load_skills(tmp_path)

    assert skills.problems == ()
    assert skills.listing() == (
        "Read a skill with the tool read_skill before you use it.\n"
        "- boats: Row and sail.\n- maps: Draw maps."
    )
    assert skills.get("maps").read() == "# Maps\nFirst a coast."
    assert load_skills(tmp_path / "none").listing() == ""


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("description: d", "the name must be of"),
        ("name: Maps\ndescription: d", "the name must be of"),
        ("name: ../up\ndescription: d", "the name must be of"),
        (f"name: {'a' * 65}\ndescription: d", "the name must be of"),
        ("name: maps", "the description must have"),
        (f"name: maps\ndescription: {'d' * 1025}", "the description must have"),
    ],
)
def test_a_skill_that_breaks_the_rules_is_told(tmp_path: Path, header: str, problem: str) -> None:
    write_skill(tmp_path, "maps", header)

    skills = load_skills(tmp_path)

    assert skills.skills == ()
    assert problem in skills.problems[0]


@pytest.mark.parametrize("text", ["", "# No header", "---\nname: x\n"])
def test_a_skill_without_a_header_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "SKILL.md").write_text(text)

    assert "must begin with a header" in load_skills(tmp_path).problems[0]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "SKILL.md").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "SKILL.md").write_text("x" * 300_000)

    first, second = load_skills(tmp_path).problems

    assert "cannot be read" in first
    assert "larger than 256 KiB" in second


def test_of_two_skills_with_one_name_the_first_counts(tmp_path: Path) -> None:
    write_skill(tmp_path, "a/maps", "name: maps\ndescription: first")
    write_skill(tmp_path, "b/maps", "name: maps\ndescription: second")

    skills = load_skills([tmp_path / "a", str(tmp_path / "b")])

    assert skills.get("maps").description == "first"
    assert "there is another skill" in skills.problems[0]


def test_a_folder_that_is_a_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    outside = write_skill(tmp_path / "outside", "maps", "name: maps\ndescription: d")
    root = tmp_path / "skills"
    root.mkdir()
    (root / "maps").symlink_to(outside)

    assert "lies outside" in load_skills(root).problems[0]


@pytest.fixture
def skill(tmp_path: Path) -> Skill:
    folder = write_skill(tmp_path / "skills", "maps", "name: maps\ndescription: d")
    (folder / "data").mkdir()
    (folder / "data" / "coast.txt").write_text("a coast")
    (folder / "large.txt").write_text("x" * 300_000)
    (folder / "binary.bin").write_bytes(b"\xff\x00")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return load_skills(tmp_path / "skills").get("maps")


def test_a_skill_may_have_files(skill: Skill) -> None:
    assert skill.read("data/coast.txt") == "a coast"
    assert skill.read("data/../data/coast.txt") == "a coast"


@pytest.mark.parametrize(
    "file",
    ["../../secret.txt", "link.txt", "/etc/passwd", "data", "missing.txt", "a\0b", ""],
)
def test_nothing_outside_of_a_skill_is_read(skill: Skill, file: str) -> None:
    with pytest.raises(SkillError, match="has no file"):
        skill.read(file)


@pytest.mark.parametrize(("file", "problem"), [("large.txt", "larger"), ("binary.bin", "cannot")])
def test_only_texts_of_a_sensible_size_are_read(skill: Skill, file: str, problem: str) -> None:
    with pytest.raises(SkillError, match=problem):
        skill.read(file)


async def test_a_model_reads_skills_through_a_tool(tmp_path: Path) -> None:
    write_skill(tmp_path, "maps", "name: maps\ndescription: d", "First a coast.")
    executor = ToolExecutor(ToolRegistry([load_skills(tmp_path).tool()]))

    async def read(**arguments: str) -> tuple[bool, str]:
        call = ToolCall("c1", "read_skill", arguments)
        result = await executor.execute(call, ToolContext())
        return result.is_error, text_of(result)

    assert await read(name="maps") == (False, "First a coast.")
    assert await read(name="maps", file="../x") == (True, "skill 'maps' has no file '../x'")
    assert await read(name="boats") == (True, "there is no skill 'boats'; there are: maps")
    assert (await read(nme="maps"))[0]
