"""Where a session stands in its story, and what moves it: turns of ink, dice, checks."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import structlog

from shared.encoding import JsonObject
from worker.ink.engine import Choice, InkEngine, Turn
from worker.ink.errors import ChoiceNotFoundError
from worker.ink.machine import InkValue
from worker.ink.throws import DIE, Check, Throw, check_in, help_of
from worker.story_rules import StoryRules, read_rules

log = structlog.get_logger(__name__)


class Dice:
    """The dice of one task. An attempt that takes the task over throws the same ones."""

    def __init__(self, task_id: UUID) -> None:
        self._random = random.Random(task_id.int)  # noqa: S311 - a game's, repeatable on purpose
        self._thrown: int | None = None

    def throw(self, check: Check, variables: Mapping[str, InkValue]) -> Throw:
        """Throw a check. The story's own first die of twenty sides then shows the same."""
        self._thrown = self._random.randint(1, DIE)
        return Throw(check, self._thrown, _modifier(check.stat, variables))

    def roll(self, sides: int) -> int:
        """A die for the story's `EXTERNAL roll(sides)`."""
        if sides == DIE and self._thrown is not None:
            thrown, self._thrown = self._thrown, None
            return thrown
        return self._random.randint(1, max(1, int(sides)))


@dataclass(frozen=True)
class Scene:
    """The story and the session's place in it.

    `turn` is ink's view of the place: open choices, variables and the save to go on from; `text`
    is what ink told last.
    """

    engine: InkEngine
    rules: StoryRules
    turn: Turn
    text: str

    def choice(self, choice_id: str) -> Choice:
        """An open choice; raises ChoiceNotFoundError."""
        for choice in self.turn.choices:
            if choice.id == choice_id:
                return choice
        raise ChoiceNotFoundError(choice_id)

    def moved(self, turn: Turn) -> "Scene":
        """The place after a turn, which may have told nothing new."""
        return replace(self, turn=turn, text=turn.text or self.text)

    @property
    def choices(self) -> list[JsonObject]:
        """The open choices as clients see them."""
        return [as_json(choice) for choice in self.turn.choices]

    @property
    def public(self) -> JsonObject:
        """What clients may see of the state."""
        names = self.engine.public_names
        return {
            "scene": self.text,
            "ended": self.turn.ended,
            "variables": {name: self.turn.variables[name] for name in names},
        }

    @property
    def private(self) -> JsonObject:
        """What the session keeps for its next task."""
        return {"ink": self.turn.save, "scene": self.text, "ended": self.turn.ended}


def as_json(choice: Choice) -> JsonObject:
    """A choice as clients see it."""
    return {"id": choice.id, "text": choice.text, "tags": list(choice.tags)}


async def open_scene(engine: InkEngine, state: JsonObject) -> Scene:
    """The place that a session's state says; raises InkError."""
    # Continuing a finished turn tells nothing new: it reads choices and variables from the save.
    turn = await asyncio.to_thread(engine.advance, state["ink"], functions=_no_dice())
    return Scene(engine, rules_of(engine), turn, str(state.get("scene", "")))


async def begin(engine: InkEngine, task_id: UUID) -> Scene:
    """The story's beginning; raises InkError."""
    turn = await _advance(engine, Dice(task_id), seed=task_id.int)
    return Scene(engine, rules_of(engine), turn, turn.text)


async def take(scene: Scene, choice: Choice | None, dice: Dice) -> tuple[Scene, Throw | None]:
    """Take a choice, after the throw that its tags ask for, or go on without one; raises InkError.

    The scene that is given back has a turn whose text is only what this step told.
    """
    check = None if choice is None else check_of(choice)
    throw = None if check is None else dice.throw(check, scene.turn.variables)
    turn = await _advance(
        scene.engine,
        dice,
        save=scene.turn.save,
        choice_id=None if choice is None else choice.id,
        variables={} if throw is None else throw.variables(scene.engine.variable_names),
    )
    return scene.moved(turn), throw


async def change(scene: Scene, variables: Mapping[str, InkValue]) -> Scene:
    """Set variables where the session stands; raises InkError."""
    if not variables:
        return scene
    turn = await asyncio.to_thread(
        scene.engine.advance, scene.turn.save, variables=variables, functions=_no_dice()
    )
    return replace(scene, turn=replace(turn, lines=scene.turn.lines))


def rules_of(engine: InkEngine) -> StoryRules:
    """What the story's global tags ask for."""
    return read_rules(tuple(engine.tags), tuple(engine.variable_names), engine.public_names)


def check_of(choice: Choice) -> Check | None:
    """The check that a choice's tags ask for, such as `# dc:12 # stat:wits`."""
    try:
        return check_in(choice.tags)
    except ValueError as error:
        log.warning("a choice's tag is no number", choice=choice.id, dc=str(error)[:80])
        return None


def _modifier(stat: str | None, variables: Mapping[str, InkValue]) -> float:
    helped = help_of(stat, variables)
    if stat is not None and helped is None:
        log.warning("a check's stat is no number of the story's", stat=stat[:80])
    return 0 if helped is None else helped


async def _advance(engine: InkEngine, dice: Dice, **how: Any) -> Turn:
    """One turn of ink; in a thread, for a turn that spends its whole budget takes half a second."""
    return await asyncio.to_thread(engine.advance, functions={"roll": dice.roll}, **how)


def _no_dice() -> dict[str, Any]:
    # The engine is bound anew when the set of functions changes, so `roll` is always given.
    return {"roll": lambda sides: 1}
