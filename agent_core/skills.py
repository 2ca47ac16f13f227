"""Skills: folders with instructions that a model reads when it needs them.

A skill is a folder with a file `SKILL.md`: a header between lines of `---` that names and
describes it, and a body. The model is shown names and descriptions; bodies and further files
are read through a tool. Nothing outside the skill's folder can be read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent_core.errors import SkillError
from agent_core.results import AgentToolResult
from agent_core.tools import AgentTool, ToolContext, ToolUpdate

_FILE = "SKILL.md"
_MAX_NAME = 64
_MAX_DESCRIPTION = 1_024
_MAX_BYTES = 256 * 1024

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_FIELD = re.compile(r"([A-Za-z_-]+):\s*(.*)")


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill; `folder` is its resolved folder."""

    name: str
    description: str
    folder: Path

    def read(self, file: str = _FILE) -> str:
        """Return a file of the skill, of SKILL.md without its header; raises SkillError."""
        path = self._path(file)
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise SkillError(f"{file!r} of skill {self.name!r} is larger than 256 KiB")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SkillError(f"{file!r} of skill {self.name!r} cannot be read") from error
        return _split(text)[1] if file == _FILE else text

    def _path(self, file: str) -> Path:
        try:
            # Resolved before it is compared: a link may lead outside as well as "..".
            path = (self.folder / file).resolve(strict=True)
        except (OSError, ValueError) as error:
            raise SkillError(f"skill {self.name!r} has no file {file!r}") from error
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise SkillError(f"skill {self.name!r} has no file {file!r}")
        return path


@dataclass(frozen=True, slots=True)
class Skills:
    """The skills of a folder; `problems` tells of those that could not be loaded."""

    skills: tuple[Skill, ...]
    problems: tuple[str, ...] = field(default=())

    def listing(self) -> str:
        """Return names and descriptions for the system prompt, in a stable order."""
        if not self.skills:
            return ""
        lines = "\n".join(f"- {skill.name}: {skill.description}" for skill in self.skills)
        return f"Read a skill with the tool read_skill before you use it.\n{lines}"

    def get(self, name: str) -> Skill:
        """Return a skill; raises SkillError."""
        for skill in self.skills:
            if skill.name == name:
                return skill
        known = ", ".join(skill.name for skill in self.skills) or "none"
        raise SkillError(f"there is no skill {name!r}; there are: {known}")

    def tool(self) -> AgentTool:
        """Return the tool `read_skill`."""
        return AgentTool(
            name="read_skill",
            label="Read a skill",
            description="Read the instructions of a skill, or another file of it.",
            parameters={
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "the skill"},
                    "file": {"type": "string", "description": f"a path in it, else {_FILE}"},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
            execute=self._execute,
            effect="pure",
        )

    async def _execute(
        self, _: str, params: dict[str, str], __: ToolContext, ___: ToolUpdate
    ) -> AgentToolResult:
        skill = self.get(params["name"])
        text = await asyncio.to_thread(skill.read, params.get("file", _FILE))
        return AgentToolResult.text(text)


def load_skills(folders: Path | str | Iterable[Path | str]) -> Skills:
    """Load the skills in the subfolders of one or more folders.

    What is no proper skill is left out and told in `problems`; of two with one name the first
    counts.
    """
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found: dict[str, Skill] = {}
    problems: list[str] = []
    for root in map(Path, roots):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if not (folder / _FILE).exists():
                continue
            try:
                skill = _load(root.resolve(), folder)
                if skill.name in found:
                    raise SkillError(f"there is another skill {skill.name!r}")  # noqa: TRY301
                found[skill.name] = skill
            except SkillError as error:
                problems.append(f"{folder.name}: {error}")
    ordered = tuple(found[name] for name in sorted(found))
    return Skills(ordered, tuple(problems))


def _load(root: Path, folder: Path) -> Skill:
    resolved = folder.resolve()
    if not resolved.is_relative_to(root):
        raise SkillError("the folder lies outside of the folder of skills")
    # Read through a skill without a name yet: the same checks of path and size.
    whole = Skill(folder.name, "", resolved)
    path = whole._path(_FILE)  # noqa: SLF001 - of the same class and module
    if path.stat().st_size > _MAX_BYTES:
        raise SkillError(f"{_FILE} is larger than 256 KiB")
    try:
        fields, _ = _split(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SkillError(f"{_FILE} cannot be read") from error
    name = fields.get("name", "")
    description = fields.get("description", "")
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise SkillError(f"the name must be of a-z, 0-9 and single dashes, at most {_MAX_NAME}")
    if not description or len(description) > _MAX_DESCRIPTION:
        raise SkillError(f"the description must have 1 to {_MAX_DESCRIPTION} characters")
    return Skill(name, description, resolved)


def _split(text: str) -> tuple[dict[str, str], str]:
    """Return the fields of the header and the body; raises SkillError.

    Of YAML only what such headers use is understood: `key: value`, quotes, and values that go
    on in indented lines.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in map(str.strip, lines[1:]):
        raise SkillError(f"{_FILE} must begin with a header between lines of ---")
    end = next(at for at, line in enumerate(lines[1:], 1) if line.strip() == "---")
    fields: dict[str, str] = {}
    name = ""
    for line in lines[1:end]:
        match = _FIELD.fullmatch(line)
        if match:
            name = match[1]
            value = match[2].strip()
            fields[name] = "" if value in {">", "|", ">-", "|-"} else value.strip("\"'")
        elif name and line[:1].isspace():
            fields[name] = f"{fields[name]} {line.strip()}".strip()
    return fields, "\n".join(lines[end + 1 :]).strip()
