"""The README says what the code does."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from websockets.asyncio.server import ServerConnection, serve

from shared.settings import Settings
from tests.waiting import within

Frame = dict[str, Any]

ROOT = Path(__file__).parents[1]


def settings_rows() -> list[str]:
    """The table of settings as the README must have it."""
    rows = []
    for name, field in Settings.model_fields.items():
        variable = name.upper() if field.validation_alias else f"FIRESIDE_{name.upper()}"
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, list):
            default = ", ".join(default)
        shown = f"`{default}`" if default not in {None, ""} else ""
        rows.append(f"| `{variable}` | {shown} | {field.description} |")
    return rows


def test_the_table_of_settings_is_that_of_the_settings_class() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("| variable | default | meaning |") + 2
    table = lines[start : lines.index("", start)]

    assert table == settings_rows()


def blocks(heading: str) -> dict[str, str]:
    """The fenced blocks of a section, by their language."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def test_the_example_of_the_agent_library_gives_the_events_that_are_shown() -> None:
    shown = blocks("The agent library")

    ran = subprocess.run(
        [sys.executable, "-c", shown["python"]], capture_output=True, text=True, cwd=ROOT
    )

    assert (ran.stdout, ran.stderr) == (shown["text"], "")


async def test_the_client_shows_also_what_came_before_it() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (code,) = [one for one in shown if "websockets" in one]

    def end(seq: int, number: int, role: str, text: str) -> Frame:
        message = {"role": role, "content": [{"type": "text", "text": text}]}
        data = {"message": message, "number": number}
        return {"type": "message_end", "seq": seq, "task_id": "t", "data": data}

    piece = {"type": "message_update", "task_id": "t", "attempt": 1, "message": 2}
    frames = [
        end(1, 0, "user", "Hello?"),
        end(2, 1, "assistant", "Long ago."),
        {**piece, "offset": 0, "delta": "Just "},
        {**piece, "offset": 5, "delta": "now."},
        end(3, 2, "assistant", "Just now."),
    ]

    async def tell(socket: ServerConnection) -> None:
        for frame in frames:
            await socket.send(json.dumps(frame))

    async with serve(tell, "127.0.0.1", 0) as server:
        (listening, *_) = server.sockets
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code.replace("localhost:8000", address), "SESSION"),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await within(client.communicate())

    assert said.decode() == (
        "\n[1] message_end\n\n[2] message_end\nLong ago.\nJust now.\n[3] message_end\n"
    )


def test_who_adds_an_agent_or_a_story_is_told_to_name_those_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    for variable, name in {
        "FIRESIDE_AGENT_MODULES": "agent_modules",
        "FIRESIDE_STORY_FOLDERS": "story_folders",
    }.items():
        (shown,) = re.findall(rf'^`?.*{variable}="([^"]*)" make up', readme, re.MULTILINE)
        there: list[str] = Settings.model_fields[name].default
        assert shown.split()[: len(there)] == there
