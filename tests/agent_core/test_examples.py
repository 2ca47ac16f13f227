"""The examples run, with scripted models, and stay small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_core import ToolResultMessage
from agent_core.testing import ScriptedModel, call, calls, failure
from examples import chat, router, skills, steering, tools
from tests.agent_core.agents import text_of

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["chat", "tools", "steering", "router", "skills"])
def test_an_example_is_small(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 40


def test_the_router_names_the_key_of_each_model() -> None:
    wanted = {f"{one.provider.upper()}_API_KEY" for one in router.models().candidates(task="deep")}
    wanted |= {f"{one.provider.upper()}_API_KEY" for one in router.models().candidates()}

    assert len(wanted) == 3
    assert [name for name in wanted if name not in (router.__doc__ or "")] == []


ARGUMENTS = {
    "chat": ["MODEL"],
    "tools": ["MODEL"],
    "steering": ["MODEL"],
    "skills": ["FOLDER", "MODEL"],
}


def ran(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An example as a user without a key runs it."""
    return process("-m", f"examples.{name}", *arguments)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, without anybody's key."""
    env = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=FOLDER.parent, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["chat", "tools", "steering", "skills"])
def test_without_its_arguments_an_example_says_what_it_takes(name: str) -> None:
    ended = ran(name)

    usage = f"usage: python -m examples.{name} {' '.join(ARGUMENTS[name])}\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", usage)


# One process for all: each would import litellm anew. The router's last model would be asked over
# the network before it is found to have no key.
EACH = """
import json, runpy, sys
said = {}
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(f"examples.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        said[name] = ended.code
print(json.dumps(said))
"""


def test_without_a_key_an_example_says_so_and_fails(tmp_path: Path) -> None:
    given = {"FOLDER": str(tmp_path), "MODEL": "gpt-4o-mini"}
    each = [[name, *map(given.__getitem__, wanted)] for name, wanted in ARGUMENTS.items()]
    ended = process("-c", EACH, json.dumps(each))

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert list(said) == list(ARGUMENTS)
    for error in said.values():
        assert error.startswith("error: ")
        assert "key" in error.lower()


async def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel(["Good evening, sailor.", "You said hello."])

    agent = await chat.chat(["Hello!", "What did I say?"], "gpt-4o-mini", model)

    assert len(agent.state.messages) == 4
    assert "Good evening, sailor." in capsys.readouterr().out


async def test_tools() -> None:
    model = ScriptedModel([calls(call("c1", "roll", sides=6, times=2)), "You rolled well."])

    agent = await tools.play("gpt-4o-mini", model, seed=1)

    assert text_of(agent.state.messages[-1]) == "You rolled well."
    rolled = model.requests[1].messages[-1]
    assert isinstance(rolled, ToolResultMessage)
    assert rolled.details == [2, 5]


async def test_steering() -> None:
    patrol = calls(call("c1", "look", place="harbour"), call("c2", "look", place="mill"))
    model = ScriptedModel([patrol, "I am back.", "Good night."])

    agent = await steering.patrol("gpt-4o-mini", model)

    assert [text_of(message) for message in agent.state.messages][2:] == [
        "Nothing moves at the harbour.",
        "Skipped due to queued user message.",
        "Stop! Come back to the gate.",
        "I am back.",
        "Now rest.",
        "Good night.",
    ]


async def test_router() -> None:
    model = ScriptedModel([failure("overloaded"), "The keeper."])

    agent = await router.ask("Who keeps the light?", "simple", model)

    assert text_of(agent.state.messages[-1]) == "The keeper."
    assert [request.model.id for request in model.requests] == [
        "gpt-4o-mini",
        "mistral-large-latest",
    ]


async def test_skills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maps").mkdir()
    header = "---\nname: maps\ndescription: Draw maps.\n---\n"
    (tmp_path / "maps" / "SKILL.md").write_text(f"{header}First the coast.")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "SKILL.md").write_text("no header")
    model = ScriptedModel([calls(call("c1", "read_skill", name="maps")), "Here it is."])

    agent = await skills.work(tmp_path, "Draw a map.", "gpt-4o-mini", model)

    assert "- maps: Draw maps." in model.requests[0].system_prompt
    assert text_of(agent.state.messages[2]) == "First the coast."
    assert "left out: bad" in capsys.readouterr().out
