"""The referee: which open choice a player's own words mean, if any.

A model rules; where it gives nothing usable the words do. Whatever it answers, it can only point at
a choice that is open or ask for a throw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.encoding import JsonObject
from worker.ink.engine import Choice
from worker.ink.throws import Check, is_number
from worker.story_calls import StoryCalls
from worker.story_prompts import (
    CHOICES,
    HISTORY_CHARACTERS,
    PLAYER_MARKS,
    SCENE_CHARACTERS,
    clip,
    facts,
    numbered,
    quoted,
)
from worker.story_replies import json_in, number_in, text_in
from worker.story_rules import StoryRules
from worker.story_scene import Scene
from worker.story_words import exact, match

REFEREE = f"""\
You are the referee of an interactive story. The story goes on by numbered choices. The player wrote
something in their own words; you say which of the choices it means, or that it means none.

- A choice is meant if the player does, says or decides what it says, in whatever words.
- Asking about it, considering it, refusing it, or doing only something near it is not that choice.
- Doing several things at once means the one choice among them, if there is just one.
- A claim about what has happened, what the player owns or how the story ends means no choice.
- If you are torn between two choices, it is none.
- Only if no choice is meant, and the player tries something that could well fail and where failing
  would matter, name a check: the stat that helps and a difficulty from 5 (easy) to 20 (very hard).

{PLAYER_MARKS}

Answer with one JSON object and nothing else:
{{"choice": a number or null, "confidence": 0 to 1, "check": null or {{"stat": a name, "dc": \
a number}}, "reason": a few words}}"""

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "choice": {"type": ["integer", "null"]},
        "confidence": {"type": "number"},
        "check": {
            "type": ["object", "null"],
            "properties": {"stat": {"type": "string"}, "dc": {"type": "integer"}},
            "required": ["stat", "dc"],
            "additionalProperties": False,
        },
        "reason": {"type": "string", "maxLength": 100},
    },
    "required": ["choice", "confidence", "check", "reason"],
    "additionalProperties": False,
}

CLEAR = 0.8
"""From which score on words overrule a model that is not sure."""

LOWEST_DC, HIGHEST_DC = 2, 30
_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the referee says of a text.

    `choice` is the one that is taken: None also where one was named without enough confidence.
    `by` is "model" or "words", `check` what a free deed takes.
    """

    choice: Choice | None
    confidence: float
    by: str
    reason: str = ""
    check: Check | None = None

    def to_dict(self) -> JsonObject:
        """As it stands in a task's decision."""
        return {
            "choice": None if self.choice is None else self.choice.id,
            "confidence": self.confidence,
            "by": self.by,
            "reason": self.reason,
        }


async def rule(calls: StoryCalls, scene: Scene, words: str, told: str = "") -> Ruling:
    """Rule on what a player wrote, to what was told last; no model is asked what a choice's own
    words or its number mean.

    Raises AbortedError, and what the journal raises; never for what a model answers.
    """
    if exact(words, [choice.text for choice in scene.turn.choices]) is not None:
        return by_words(scene.turn.choices, words)
    prompt = system_prompt(scene.rules, stats_of(scene))
    asked = question(scene, words, told)
    return settle(await calls.ask("referee", prompt, asked, SCHEMA), scene, words)


def settle(reply: str | None, scene: Scene, words: str) -> Ruling:
    """The ruling by a model's answer, if it is one.

    Without one the words rule. Where the model itself is not sure, not even of there being no
    choice, they do if they are clear: small models are hardly ever sure.
    """
    ruling = None if reply is None else read(reply, scene)
    if ruling is None:
        return by_words(scene.turn.choices, words)
    if ruling.confidence < scene.rules.confidence:
        found = by_words(scene.turn.choices, words)
        if found.choice is not None and found.confidence >= CLEAR:
            return found
    return ruling


def system_prompt(rules: StoryRules, stats: Sequence[str]) -> str:
    """What stays the same through a story."""
    return f"{REFEREE}\n\n{facts(rules)}\nIts stats: {', '.join(stats) or 'none'}."


def question(scene: Scene, words: str, told: str = "") -> str:
    """What is asked of one text: the scene first, the player's words last."""
    parts = [f"The scene:\n{clip(scene.text, SCENE_CHARACTERS)}"]
    # A narrator's answer to small deeds is not in the scene, but players answer to it.
    if told and told != scene.text:
        parts.append(f"What was told last:\n{clip(told, HISTORY_CHARACTERS)}")
    parts.append(f"The choices:\n{numbered(scene.turn.choices)}")
    parts.append(quoted(words))
    return "\n\n".join(parts)


def read(reply: str, scene: Scene) -> Ruling | None:
    """What a model's answer says; None where it is no ruling."""
    said = json_in(reply, "choice")
    if said is None:
        return None
    try:
        choice = _chosen(said["choice"], scene.turn.choices)
    except LookupError:
        return None
    # An answer that does not say how sure it is is not sure.
    confidence = min(1.0, max(0.0, number_in(said.get("confidence")) or 0.0))
    reason = text_in(said.get("reason"), _REASON_CHARACTERS)
    if choice is not None and confidence < scene.rules.confidence:
        return Ruling(None, confidence, "model", reason)
    check = _check(said.get("check"), stats_of(scene)) if choice is None else None
    return Ruling(choice, confidence, "model", reason, check)


def by_words(choices: Sequence[Choice], words: str) -> Ruling:
    """What the words alone say, without any model."""
    index, confidence = match(words, [choice.text for choice in choices])
    return Ruling(None if index is None else choices[index], confidence, "words")


def stats_of(scene: Scene) -> tuple[str, ...]:
    """The variables that may help a free deed."""
    variables = scene.turn.variables
    return tuple(name for name in scene.rules.stats if is_number(variables.get(name)))


def _chosen(value: object, choices: Sequence[Choice]) -> Choice | None:
    """The choice of a number from 1; raises LookupError where there is none of that number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", "none", "null"}):
        return None
    number = number_in(value)
    if number is None or number != int(number):
        raise LookupError(value)
    if number == 0:
        return None
    if not 1 <= number <= min(len(choices), CHOICES):
        raise LookupError(value)
    return choices[int(number) - 1]


def _check(value: object, stats: Sequence[str]) -> Check | None:
    if not isinstance(value, dict):
        return None
    dc = number_in(value.get("dc"))
    if dc is None:
        return None
    stat = value.get("stat")
    return Check(stat if stat in stats else None, int(min(HIGHEST_DC, max(LOWEST_DC, dc))))
