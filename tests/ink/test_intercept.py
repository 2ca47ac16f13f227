"""A whole game, choice by choice beside inkjs, whose runtime is in the vendored bundle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import quickjs

from worker.ink.compiler import BUNDLE, compile_story
from worker.ink.engine import InkEngine, Turn

PLAY = """
function playInk(compiled, picks, save) {
  const story = new inkjs.Story(compiled);
  if (save) story.state.LoadJson(save);
  const turns = [];
  for (const pick of [null, ...JSON.parse(picks)]) {
    if (pick !== null) story.ChooseChoiceIndex(pick % story.currentChoices.length);
    const lines = [];
    while (story.canContinue) lines.push([story.Continue(), story.currentTags]);
    turns.push({lines, choices: story.currentChoices.map((c) => [c.text, c.tags || []])});
  }
  return JSON.stringify(turns);
}
"""
PICKS = [(7 * number + 3) % 11 for number in range(20)]
OTHER_PICKS = [number % 2 for number in range(20)]


@dataclass(frozen=True)
class Seen:
    """A turn as a player sees it: pairs of text and tags."""

    lines: list[tuple[str, list[str]]]
    choices: list[tuple[str, list[str]]]


def by_inkjs(compiled: str, picks: list[int], save: str = "") -> list[Seen]:
    context: Any = quickjs.Context()
    context.set_max_stack_size(4 << 20)
    context.eval("globalThis.console = {log() {}, warn() {}, error() {}};")
    context.eval(BUNDLE.read_text())
    context.eval(PLAY)
    turns = json.loads(context.get("playInk")(compiled, json.dumps(picks), save))
    return [
        Seen(
            # inkjs gives a line with its end, and empty lines, which our turns leave out.
            [(text.rstrip("\n"), tags) for text, tags in turn["lines"] if text.strip() or tags],
            [(text, tags) for text, tags in turn["choices"]],
        )
        for turn in turns
    ]


def seen(turn: Turn) -> Seen:
    return Seen(
        [(line.text, list(line.tags)) for line in turn.lines],
        [(choice.text, list(choice.tags)) for choice in turn.choices],
    )


@pytest.fixture(scope="module")
def compiled(shared_data: Path) -> str:
    source = (shared_data / "ink" / "TheIntercept.ink").read_text()
    return compile_story({"story.ink": source}).json


@pytest.mark.parametrize("picks", [PICKS, OTHER_PICKS])
@pytest.mark.parametrize("rebuilt", [False, True], ids=["one engine", "rebuilt for each choice"])
def test_twenty_choices_read_as_with_inkjs(compiled: str, picks: list[int], rebuilt: bool) -> None:
    engine = InkEngine(compiled)

    turns = [engine.advance()]
    for pick in picks:
        choices = turns[-1].choices
        player = InkEngine(compiled) if rebuilt else engine
        turns.append(player.advance(turns[-1].save, choices[pick % len(choices)].id))

    assert [seen(turn) for turn in turns] == by_inkjs(compiled, picks)


def test_inkjs_goes_on_from_our_save(compiled: str) -> None:
    engine = InkEngine(compiled)
    turn = engine.advance()
    for pick in PICKS[:8]:
        turn = engine.advance(turn.save, turn.choices[pick % len(turn.choices)].id)

    assert by_inkjs(compiled, PICKS[8:], turn.save)[1:] == by_inkjs(compiled, PICKS)[9:]
