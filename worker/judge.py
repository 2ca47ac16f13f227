"""The judge: what a player's words and their telling change in the variables a story opens to it.

Its answer is only a proposal. A change counts if the story lists the variable, and the value has
the variable's type and range; everything else is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shared.encoding import JsonObject
from worker.ink.machine import InkValue
from worker.ink.ranges import Range
from worker.ink.throws import is_number
from worker.story_calls import StoryCalls
from worker.story_prompts import PLAYER_MARKS, SCENE_CHARACTERS, clip, facts, quoted
from worker.story_replies import json_in, number_in, text_in
from worker.story_scene import Scene

JUDGE = f"""\
You keep the books of an interactive story. A player wrote something, and a narrator told what came
of it. You say which of the listed variables that changes, and whether the narration contradicts the
story's own text.

- Judge by what the narration and the story's text say happened, never by what the player claims.
- Most of the time nothing changes. Change little at a time, and only within the given ranges.
- A contradiction is a fact of the narration that the story's text rules out.

{PLAYER_MARKS}

Answer with one JSON object and nothing else:
{{"changes": {{a variable's name: its new value}}, "contradictions": [short sentences]}}"""

_TEXT_CHARACTERS = 80
_CONTRADICTIONS = 5
_CONTRADICTION_CHARACTERS = 300
_INT32: Final = 2**31


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge changed, and the contradictions that it saw.

    `usable` is false where its answer was none; nothing changes then.
    """

    changes: Mapping[str, InkValue] = field(default_factory=dict)
    contradictions: tuple[str, ...] = ()
    usable: bool = True

    def to_dict(self, public: tuple[str, ...]) -> JsonObject:
        """As it stands in a task's decision, with what players may know."""
        return {
            "changes": {name: value for name, value in self.changes.items() if name in public},
            "contradictions": list(self.contradictions),
            "usable": self.usable,
        }


async def judge(calls: StoryCalls, scene: Scene, words: str, narration: str) -> Verdict:
    """Judge what was told.

    Raises AbortedError, and what the journal raises; never for what a model answers.
    """
    prompt = f"{JUDGE}\n\n{facts(scene.rules)}"
    asked = _question(scene, words, narration)
    reply = await calls.ask("judge", prompt, asked, _schema(scene))
    return Verdict(usable=False) if reply is None else read(reply, scene)


def read(reply: str, scene: Scene) -> Verdict:
    """What a model's answer may change."""
    said = json_in(reply, "changes")
    if said is None:
        return Verdict(usable=False)
    proposed = said["changes"] if isinstance(said["changes"], dict) else {}
    current = scene.turn.variables
    changes: dict[str, InkValue] = {}
    for name, allowed in scene.rules.judged.items():
        if name in proposed:
            value = _fitting(proposed[name], current[name], allowed)
            if value is not None and value != current[name]:
                changes[name] = value
    found = said.get("contradictions")
    texts = (
        [text_in(one, _CONTRADICTION_CHARACTERS) for one in found]
        if isinstance(found, list)
        else []
    )
    return Verdict(changes, tuple(text for text in texts if text)[:_CONTRADICTIONS])


def _question(scene: Scene, words: str, narration: str) -> str:
    current = scene.turn.variables
    variables = "\n".join(
        f"- {name} = {current[name]!r} ({allowed})" for name, allowed in scene.rules.judged.items()
    )
    return (
        f"The variables:\n{variables}\n\n"
        f"The story's text:\n{clip(scene.text, SCENE_CHARACTERS)}\n\n"
        f"The narration:\n{clip(narration, SCENE_CHARACTERS)}\n\n"
        f"{quoted(words)}"
    )


def _schema(scene: Scene) -> Mapping[str, Any]:
    """The answer's form, in which a variable that doesn't change is left out."""
    current = scene.turn.variables
    return {
        "type": "object",
        "properties": {
            "changes": {
                "type": "object",
                "properties": {
                    name: _value_schema(current[name], allowed)
                    for name, allowed in scene.rules.judged.items()
                },
                "additionalProperties": False,
            },
            "contradictions": {
                "type": "array",
                "items": {"type": "string", "maxLength": 200},
                "maxItems": 2,
            },
        },
        "required": ["changes", "contradictions"],
        "additionalProperties": False,
    }


def _value_schema(current: InkValue, allowed: Range) -> Mapping[str, Any]:
    if isinstance(current, bool):
        return {"type": "boolean"}
    if isinstance(current, str):
        words = {"enum": list(allowed.words)} if allowed.words else {}
        return {"type": "string", **words}
    return {"type": "integer" if isinstance(current, int) else "number"}


def _fitting(value: object, current: InkValue, allowed: Range) -> InkValue:
    """The value if the variable may become it; else None, which no variable becomes."""
    if isinstance(current, bool):
        return value if isinstance(value, bool) else None
    if isinstance(current, str):
        return _fitting_text(value, allowed)
    if not is_number(current) or allowed.words:
        return None  # a list, a divert, or a range that is none of numbers
    number = number_in(value) if not isinstance(value, str) else None
    if number is None or not allowed.low <= number <= allowed.high or abs(number) >= _INT32:
        return None
    # 0.4 - 0.3 is a little more than 0.1.
    change = abs(number - current)
    if change > allowed.step and not math.isclose(change, allowed.step):
        return None
    if isinstance(current, int):
        return int(number) if number == int(number) else None
    return number


def _fitting_text(value: object, allowed: Range) -> str | None:
    if not isinstance(value, str):
        return None
    if allowed.words:
        return value if value in allowed.words else None
    text = text_in(value, _TEXT_CHARACTERS + 1).replace("\0", "")
    return text if 0 < len(text) <= _TEXT_CHARACTERS else None
