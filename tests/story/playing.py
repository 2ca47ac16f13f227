"""Playing stories in this process with a scripted model, and reading what came of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel
from shared.encoding import JsonObject
from shared.errors import NotFound
from shared.events import Delta
from shared.records import Event
from worker.agents import Resources
from worker.companion import CompanionAgent
from worker.in_process import InProcess, MemorySession
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
from worker.ink.library import StoryLibrary
from worker.story import StoryAgent
from worker.story_scene import Scene, begin

STORIES = Path(__file__).parents[2] / "stories"
TASK = UUID(int=7)

GATE = """
# title: The Gate
# public: mood, trust, met
# stats: wits
# judged: mood, trust, secret
# range: mood calm, cross
# range: trust 0..10 by 2
# shrug: The guard yawns.
VAR mood = "calm"
VAR trust = 3
VAR met = false
VAR secret = 1
VAR wits = 2
VAR check_roll = 0
VAR check_total = 0
VAR check_success = false
-> gate
=== gate
A guard stands before the gate.
+ [Greet the guard]
    "Evening," says the guard.
    ~ met = true
    -> gate
+ [Climb the wall # dc:12 # stat:wits]
    { check_success: You are over the wall, {check_roll} and {check_total}. | You fall. }
    -> gate
* [Leave]
    You leave the gate behind you. # ending: away
    -> END
"""


@cache
def compiled(text: str) -> str:
    return compile_story({"story.ink": text}).json


@cache
def last_lamp() -> str:
    source = StoryLibrary([STORIES]).sources()["last-lamp"]
    return compile_story(source.files, source.main).json


def ruling(
    choice: int | str | None,
    confidence: float = 0.9,
    check: JsonObject | None = None,
    reason: str = "they say so",
) -> str:
    return json.dumps(
        {"choice": choice, "confidence": confidence, "check": check, "reason": reason}
    )


def verdict(contradictions: Sequence[str] = (), **changes: Any) -> str:
    return json.dumps({"changes": changes, "contradictions": list(contradictions)})


async def scene_of(text: str = GATE) -> Scene:
    return await begin(InkEngine(compiled(text)), TASK)


@dataclass
class Table:
    """A session of one story, and the model that plays its script to it."""

    story: str = GATE
    model: ScriptedModel = field(default_factory=ScriptedModel)
    stories: dict[str, str] = field(default_factory=dict)
    shown: list[Event | Delta] = field(default_factory=list)
    session: MemorySession = field(init=False)

    def __post_init__(self) -> None:
        engine = InkEngine(compiled(self.story) if "\n" in self.story else self.story)
        self.stories[engine.hash] = engine._compiled
        self.session = MemorySession("story", "a-story", engine.hash)
        self.runner = InProcess(
            {"story": StoryAgent(), "companion": CompanionAgent()},
            Resources(SCRIPTED_MODEL, None, self.read, stream_fn=self.model),
            listener=self.shown.append,
        )

    async def read(self, story_hash: str) -> str:
        if story_hash not in self.stories:
            raise NotFound("no such story")
        return self.stories[story_hash]

    def script(self, *replies: Reply) -> None:
        self.model.script += replies

    async def act(self, kind: str, **action: str) -> Event:
        return await self.runner.act(self.session, {"type": kind, **action})

    async def done(self, kind: str, **action: str) -> JsonObject:
        """Act, and give the result of the completed task."""
        event = await self.act(kind, **action)
        assert event.type == "task_completed", event
        result: JsonObject = event.data["result"]
        return result

    async def failed(self, kind: str, **action: str) -> str:
        """Act, and give the code with which the task failed."""
        event = await self.act(kind, **action)
        assert event.type == "task_failed", event
        return str(event.data["error"]["code"])

    async def say(self, text: str, *replies: Reply) -> JsonObject:
        """Say something that the model answers with these replies, in their order."""
        self.script(*replies)
        before = len(self.model.requests)
        result = await self.done("say", text=text)
        assert len(self.model.requests) - before == len(replies)
        return result

    async def choose(self, text: str) -> JsonObject:
        """Take the open choice with this text."""
        (choice,) = [one for one in self.choices if one["text"] == text]
        return await self.done("choose", choice_id=choice["id"])

    @property
    def choices(self) -> list[JsonObject]:
        choices: list[JsonObject] = self.session.view["choices"]
        return choices

    @property
    def variables(self) -> JsonObject:
        variables: JsonObject = self.session.view["state"]["variables"]
        return variables

    def prompt(self, number: int) -> str:
        """The last message of a request to the model."""
        content = self.model.requests[number].messages[-1].content
        assert isinstance(content, str)
        return content

    async def still_plays(self) -> None:
        """The session goes on as if nothing had been."""
        result = await self.done("continue")
        assert result["choices"] == self.choices
        if self.choices:
            await self.done("choose", choice_id=self.choices[0]["id"])


async def begun(story: str = GATE, *script: Reply, otherwise: Reply | None = None) -> Table:
    """A table whose story has begun."""
    table = Table(story, ScriptedModel(script, otherwise=otherwise))
    await table.done("start")
    return table


def plain(value: Any) -> Any:
    """Without times, which are never the same."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if name not in {"timestamp", "ms"}}
    return [plain(one) for one in value] if isinstance(value, list) else value


def told(events: Sequence[Event]) -> list[tuple[str, Any]]:
    return [(event.type, plain(event.data)) for event in events]
