"""The examples run, with scripted models, and stay small."""

from __future__ import annotations

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


async def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel(["Good evening, sailor.", "You said hello."])

    agent = await chat.chat(["Hello!", "What did I say?"], "gpt-4o-mini", model)

    assert len(agent.state.messages) == 4
    assert "Good evening, sailor." in capsys.readouterr().out


async def test_tools() -> None:
    model = ScriptedModel([calls(call("c1", "roll", sides=6, times=2)), "You rolled well."])

    assert await tools.play("gpt-4o-mini", model, seed=1) == "You rolled well."
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

    assert await router.ask("Who keeps the light?", "simple", model) == "scripted: The keeper."
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
