"""Turns, saves, and everything that an author or a caller can get wrong."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.ink.conftest import Play
from worker.ink.compiler import compile_story
from worker.ink.engine import DEFAULT_FLOW, Choice, InkEngine
from worker.ink.errors import (
    BudgetExceededError,
    ChoiceNotFoundError,
    EngineCrashedError,
    ExternalFailedError,
    ExternalMissingError,
    InkError,
    PathNotFoundError,
    SaveInvalidError,
    StoryFailedError,
    StoryInvalidError,
    VariableInvalidError,
)
from worker.ink.machine import Budget, InkLine, InkValue

DOORS = """
# title: Two Doors
# Author: Nobody
# public: coins, secret, courage
VAR coins = 3
VAR courage = 0.5
VAR name = "Ada"
VAR lit = false
VAR way = -> hall
LIST things = lamp, (rope), key
-> hall
=== hall
A hall. # place: hall
* [Left # dc:12 # stat:wits] -> left
+ Wait[.] and see.
  ~ coins--
  -> hall
* -> out
=== left
~ things += lamp
Left.
-> END
=== out
-> END
"""


def test_a_turn_is_all_that_a_player_and_a_client_need(story: Play) -> None:
    engine = story(DOORS)

    turn = engine.advance()

    head = ("title: Two Doors", "Author: Nobody", "public: coins, secret, courage")
    assert turn.lines == (InkLine("A hall.", (*head, "place: hall")),)
    assert turn.text == "A hall."
    assert turn.choices == (
        Choice("hall.0.c-0", 0, "Left", ("dc:12", "stat:wits")),
        Choice("hall.0.c-1", 1, "Wait."),
    )
    assert turn.variables == {
        "coins": 3,
        "courage": 0.5,
        "name": "Ada",
        "lit": False,
        "way": None,
        "things": ("things.rope",),
    }
    assert not turn.ended


def test_the_global_tags_tell_what_the_story_is(story: Play) -> None:
    engine = story(DOORS)

    assert engine.metadata["title"] == "Two Doors"
    assert engine.metadata["author"] == "Nobody"
    assert engine.public_names == ("coins", "courage")


def test_a_choice_leads_on_and_the_end_is_told(story: Play) -> None:
    engine = story(DOORS)
    first = engine.advance()

    waited = engine.advance(first.save, "hall.0.c-1")
    ended = engine.advance(waited.save, "hall.0.c-0")

    assert waited.variables["coins"] == 2
    assert [line.text for line in waited.lines] == ["Wait and see.", "A hall."]
    assert ended.variables["things"] == ("things.lamp", "things.rope")
    assert (ended.text, ended.choices, ended.ended) == ("Left.", (), True)
    assert engine.advance(ended.save).ended


def test_a_save_alone_gives_the_same_choices_again(story: Play) -> None:
    engine = story(DOORS)
    first = engine.advance()

    again = engine.advance(first.save)

    assert again.choices == first.choices
    assert again.lines == ()


def test_a_fallback_choice_does_not_come_back_from_a_save(story: Play) -> None:
    engine = story("-> k\n=== k\n* [A] -> k\n* [B] -> k\n* -> fin\n=== fin\nOver.\n-> END\n")

    turn = engine.advance()
    for _ in range(2):
        assert all(choice.text for choice in engine.advance(turn.save).choices)
        turn = engine.advance(turn.save, turn.choices[0].id)

    assert (turn.text, turn.ended) == ("Over.", True)


def test_one_choice_that_is_offered_twice_has_two_ids(story: Play) -> None:
    engine = story("<- t\n<- t\nHello.\n-> DONE\n=== t\n+ [Go] Gone.\n-> END\n")

    turn = engine.advance()

    assert [choice.id for choice in turn.choices] == ["t.0.c-0", "t.0.c-0#2"]
    assert engine.advance(turn.save, "t.0.c-0#2").text == "Gone."


def test_variables_can_be_set_and_the_story_reads_them(story: Play) -> None:
    engine = story('VAR n = 1\nVAR s = ""\nLIST l = a, b\n* go\n{n} {s} {l}\n-> END\n')
    turn = engine.advance()

    values: dict[str, InkValue] = {"n": 2.5, "s": "zwölf 🕯", "l": ("l.b", "l.a")}
    ended = engine.advance(turn.save, turn.choices[0].id, variables=values)

    assert ended.lines[-1].text == "2.5 zwölf 🕯 a, b"
    assert ended.variables == {"n": 2.5, "s": "zwölf 🕯", "l": ("l.a", "l.b")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unknown", 1),
        ("coins", 2**31),
        ("coins", -(2**31) - 1),
        ("coins", float("nan")),
        ("coins", 1e39),
        ("name", "a\0b"),
        ("name", "\ud800"),
        ("things", ("things.sword",)),
        ("coins", None),
        ("coins", [1]),
    ],
)
def test_a_value_that_ink_cannot_hold_is_refused(story: Play, name: str, value: Any) -> None:
    engine = story(DOORS)

    with pytest.raises(VariableInvalidError, match=name):
        engine.advance(variables={name: value})

    assert engine.advance().text == "A hall."


def test_numbers_that_are_not_finite_survive_a_save(story: Play) -> None:
    engine = story(
        "VAR z = 0.0\nVAR q = 1.0\nVAR r = 1.0\n~ q = z / z\n~ r = 1 / z\n* go\n-> END\n"
    )

    turn = engine.advance()

    assert (turn.variables["q"], turn.variables["r"]) == (0.0, 3.4e38)
    assert engine.advance(turn.save, turn.choices[0].id).ended


def test_a_story_can_be_entered_at_a_knot(story: Play) -> None:
    engine = story(DOORS)

    assert engine.advance(path="left").text == "Left."
    with pytest.raises(PathNotFoundError, match="cellar"):
        engine.advance(path="cellar")


def test_an_unknown_choice_is_refused_and_the_save_stays_good(story: Play) -> None:
    engine = story(DOORS)
    save = engine.advance().save

    with pytest.raises(ChoiceNotFoundError, match=r"hall.0.c-0, hall.0.c-1"):
        engine.advance(save, "hall.0.c-7")

    assert engine.advance(save, "hall.0.c-0").ended


class TestFlows:
    STORY = "Main.\n* a\n* b\n- -> END\n=== side\nAside.\n* x\n* y\n- -> END\n"

    def test_a_freshly_entered_flow_keeps_its_choices(self, story: Play) -> None:
        engine = story(self.STORY)
        main = engine.advance()

        side = engine.advance(main.save, path="side", flow="talk")
        again = engine.advance(side.save)
        chosen = engine.advance(again.save, side.choices[1].id)

        assert [choice.text for choice in side.choices] == ["x", "y"]
        assert again.choices == side.choices
        assert chosen.text == "y"

    def test_the_default_flow_goes_on_where_it_was(self, story: Play) -> None:
        engine = story(self.STORY)
        main = engine.advance()
        side = engine.advance(main.save, path="side", flow="talk")

        back = engine.advance(side.save, flow=DEFAULT_FLOW)

        assert back.choices == main.choices
        assert engine.advance(back.save, main.choices[0].id).text == "a"


class TestDice:
    STORY = """EXTERNAL roll(sides)
VAR thrown = 0
~ thrown = roll(20)
{thrown}
-> END
=== function roll(sides)
~ return 7
"""

    def test_the_caller_gives_the_random_function(self, story: Play) -> None:
        asked: list[int] = []

        def roll(sides: int) -> int:
            asked.append(sides)
            return 19

        assert story(self.STORY).advance(functions={"roll": roll}).text == "19"
        assert asked == [20]

    def test_without_one_the_story_uses_its_own(self, story: Play) -> None:
        engine = story(self.STORY)

        assert engine.advance(functions={"roll": lambda _: 3}).text == "3"
        assert engine.advance().text == "7"
        assert engine.advance(functions={"roll": lambda _: 4, "other": print}).text == "4"

    def test_what_it_raises_comes_out(self, story: Play) -> None:
        engine = story(self.STORY)
        error = LookupError("no dice")

        def roll(_: int) -> int:
            raise error

        with pytest.raises(ExternalFailedError, match="no dice") as caught:
            engine.advance(functions={"roll": roll})

        assert caught.value.__cause__ is error
        assert engine.advance(functions={"roll": lambda _: 5}).text == "5"

    @pytest.mark.parametrize("value", [2**31, "a\0b", [1], float("inf")])
    def test_what_ink_cannot_hold_is_an_error(self, story: Play, value: Any) -> None:
        with pytest.raises(ExternalFailedError, match="'roll' failed"):
            story(self.STORY).advance(functions={"roll": lambda _: value})

    def test_one_that_nobody_gives_is_missed(self, story: Play) -> None:
        engine = story("EXTERNAL roll(sides)\n{roll(6)}\n-> END\n")

        with pytest.raises(ExternalMissingError, match="roll"):
            engine.advance()

        assert engine.advance(functions={"roll": lambda _: 2}).text == "2"

    def test_a_die_is_thrown_once_where_ink_looks_ahead(self, story: Play) -> None:
        engine = story("EXTERNAL roll(sides)\nOne.\nTwo {roll(6)}.\nThree {roll(6)}.\n-> END\n")
        thrown = iter(range(1, 9))

        turn = engine.advance(functions={"roll": lambda _: next(thrown)})

        assert turn.text == "One.\nTwo 1.\nThree 2."


class TestSeeds:
    STORY = "-> k\n=== k\n{RANDOM(1, 1000000)}\n+ [More] -> k\n"

    def test_one_seed_one_game(self, story: Play) -> None:
        engine = story(self.STORY)

        assert engine.advance(seed=11) == engine.advance(seed=11)
        assert engine.advance(seed=11).text != engine.advance(seed=12).text

    def test_games_without_a_seed_differ(self, story: Play) -> None:
        engine = story(self.STORY)

        assert len({engine.advance().text for _ in range(5)}) > 1

    def test_a_save_repeats_its_dice_unless_it_gets_a_new_seed(self, story: Play) -> None:
        engine = story(self.STORY)
        save = engine.advance(seed=11).save

        def more(seed: int | None = None) -> str:
            return engine.advance(save, "k.0.c-0", seed=seed).text

        assert more() == more()
        assert more(99) == more(99) != more()

    @pytest.mark.parametrize("seed", [0, -1, 2**31 - 1, 2**40])
    def test_any_whole_number_is_a_seed(self, story: Play, seed: int) -> None:
        assert story(self.STORY).advance(seed=seed).text.isdigit()


class TestBadSaves:
    def damaged(self, save: str, change: Callable[[dict[str, Any]], object]) -> str:
        state = json.loads(save)
        change(state)
        return json.dumps(state)

    @pytest.mark.parametrize(
        "save",
        ["", "{}", "null", "[]", "7", '"x"', "{" * 5000, '{"inkSaveVersion": 10}', '{"flows": {}}'],
    )
    def test_what_is_no_save(self, story: Play, save: str) -> None:
        with pytest.raises(SaveInvalidError):
            story(DOORS).advance(save)

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.pop("flows"),
            lambda state: state.pop("variablesState"),
            lambda state: state["flows"].clear(),
            lambda state: state["flows"]["DEFAULT_FLOW"].pop("callstack"),
            lambda state: state["flows"]["DEFAULT_FLOW"].pop("currentChoices"),
            lambda state: state["flows"]["DEFAULT_FLOW"]["currentChoices"].append({}),
            lambda state: state["flows"]["DEFAULT_FLOW"]["currentChoices"].append(7),
            lambda state: state["flows"]["DEFAULT_FLOW"]["currentChoices"][0].pop("targetPath"),
            lambda state: state["flows"]["DEFAULT_FLOW"]["currentChoices"][0].update(
                originalChoicePath="gone.0.1"
            ),
            lambda state: state["flows"]["DEFAULT_FLOW"]["currentChoices"][0].update(
                originalThreadIndex="x"
            ),
            lambda state: state["flows"]["DEFAULT_FLOW"].pop("choiceThreads"),
            lambda state: state.update(inkSaveVersion=1),
            lambda state: state.update(currentFlowName="other"),
        ],
    )
    def test_a_damaged_save(self, story: Play, change: Callable[[dict[str, Any]], object]) -> None:
        engine = story(DOORS)
        good = engine.advance().save

        with pytest.raises(SaveInvalidError):
            engine.advance(self.damaged(good, change), "hall.0.c-0")

        assert engine.advance(good, "hall.0.c-0").ended

    def test_a_save_that_was_cut_short(self, story: Play) -> None:
        engine = story(DOORS)
        save = engine.advance().save

        for length in range(0, len(save), 97):
            with pytest.raises(SaveInvalidError):
                engine.advance(save[:length])

    def test_a_save_of_another_story(self, story: Play) -> None:
        save = story("Other.\n* go\n-> END\n").advance().save

        with pytest.raises(SaveInvalidError, match="another story"):
            story(DOORS).advance(save)

    def test_a_save_of_another_version_in_which_a_knot_was_renamed(self) -> None:
        old = InkEngine(compile_story({"story.ink": DOORS}).json, story_hash="same")
        new = InkEngine(
            compile_story({"story.ink": DOORS.replace("hall", "lobby")}).json, story_hash="same"
        )

        with pytest.raises(SaveInvalidError):
            new.advance(old.advance().save, "hall.0.c-0")


class TestBadStories:
    def test_a_silent_loop_ends_with_the_budget(self) -> None:
        story = compile_story(
            {"story.ink": "* [go] -> k\n* [stay] -> END\n=== k\n{true: -> k}\n-> END\n"}
        )
        engine = InkEngine(story.json, budget=Budget(milliseconds=50))
        save = engine.advance().save

        with pytest.raises(BudgetExceededError, match="longer than 50 ms"):
            engine.advance(save, "0.c-0")

        assert engine.advance(save, "0.c-1").ended

    def test_time_that_the_story_did_not_have_is_none_of_its_budget(self) -> None:
        story = compile_story(
            {"story.ink": "EXTERNAL rest()\nOne{rest()}\nTwo{rest()}, {rest()}three.\n-> END\n"}
        )
        engine = InkEngine(story.json, budget=Budget(milliseconds=100))

        # Within a line, as a machine does that stands still.
        turn = engine.advance(functions={"rest": lambda: time.sleep(0.15)})

        assert (turn.text, turn.ended) == ("One\nTwo, three.", True)

    def test_an_endless_text_ends_with_the_budget(self, story: Play) -> None:
        with pytest.raises(BudgetExceededError, match="300 lines"):
            story("-> k\n=== k\nAgain.\n-> k\n").advance()

    def test_lines_that_grow_end_with_the_budget(self) -> None:
        growing = 'VAR s = "abcdefgh"\n-> k\n=== k\n{s}\n~ s = s + s\n-> k\n'
        engine = InkEngine(
            compile_story({"story.ink": growing}).json, budget=Budget(characters=999)
        )

        with pytest.raises(BudgetExceededError, match="999 characters"):
            engine.advance()

    def test_text_that_doubles_silently_ends_with_the_budget(self) -> None:
        doubling = 'VAR s = "abcdefgh"\n-> k\n=== k\n~ s = s + s\n-> k\n'
        engine = InkEngine(
            compile_story({"story.ink": doubling}).json, budget=Budget(milliseconds=50)
        )

        with pytest.raises(BudgetExceededError):
            engine.advance()

    def test_a_save_has_a_largest_size(self) -> None:
        story = compile_story({"story.ink": 'VAR s = ""\n~ s = "0123456789abcdef"\n* go\n-> END\n'})
        engine = InkEngine(story.json, budget=Budget(save_characters=500))

        with pytest.raises(BudgetExceededError, match="a save of over 500"):
            engine.advance()

    @pytest.mark.parametrize("expression", ["5 / z", "5 % z"])
    def test_a_division_by_zero_is_a_crash_and_the_next_turn_is_well(
        self, story: Play, expression: str
    ) -> None:
        engine = story(f"VAR z = 0\n* [divide] {{{expression}}}\n* [stop]\n- Well.\n-> END\n")
        save = engine.advance().save

        with pytest.raises(EngineCrashedError, match="panicked"):
            engine.advance(save, "0.c-0")

        assert engine.advance(save, "0.c-1").text == "Well."

    def test_a_wrong_sum_is_the_storys_failure(self, story: Play) -> None:
        with pytest.raises(StoryFailedError, match="Operation not available"):
            story('VAR z = "a"\nFirst.\n{z - 1}\n-> END\n').advance()

    def test_a_knot_without_an_end_ends_the_story_with_a_warning(self, story: Play) -> None:
        turn = story("-> k\n=== k\nAnd then\n").advance()

        assert (turn.text, turn.ended) == ("And then", True)
        assert "ran out of content" in turn.warnings[0]

    def test_choices_without_text_can_be_taken(self, story: Play) -> None:
        turn = story('VAR s = ""\n* {true} [{s}] -> END\n* [ok] -> END\n').advance()

        assert [choice.text for choice in turn.choices] == ["", "ok"]

    @pytest.mark.parametrize("levels", [60, 100])
    def test_nesting_beyond_the_runtimes_is_invalid(self, levels: int) -> None:
        text = "\n".join("*" * level + f" c{level}" for level in range(1, levels + 1))

        with pytest.raises(StoryInvalidError, match="nested too deep"):
            InkEngine(compile_story({"story.ink": text + "\n- -> END\n"}).json)

    @pytest.mark.parametrize(
        "compiled",
        ["", "null", "{}", "[]", '{"root": 7}', '{"root": []}', "[" * 100_000, '{"inkVersion":21}'],
    )
    def test_what_is_no_compiled_story(self, compiled: str) -> None:
        with pytest.raises(StoryInvalidError):
            InkEngine(compiled)

    def test_a_number_beyond_32_bits_is_invalid(self) -> None:
        compiled = compile_story({"story.ink": "{1234567}\n-> END\n"}).json

        with pytest.raises(StoryInvalidError):
            InkEngine(compiled.replace("1234567", "12345678901"))

    def test_a_byte_order_mark_before_the_compiled_story_is_accepted(self) -> None:
        compiled = compile_story({"story.ink": "\ufeffHello.\n-> END\n"}).json

        assert InkEngine("\ufeff" + compiled).advance().text == "Hello."


def test_one_engine_serves_many_threads(story: Play) -> None:
    engine = story("VAR n = 0\n-> k\n=== k\n{n}\n+ [More]\n  ~ n++\n  -> k\n")
    start = threading.Barrier(8)

    def play(turns: int) -> str:
        start.wait()
        turn = engine.advance()
        for _ in range(turns):
            turn = engine.advance(turn.save, turn.choices[0].id)
        return turn.lines[-1].text

    with ThreadPoolExecutor(8) as threads:
        counted = list(threads.map(play, range(20, 28)))

    assert counted == [str(number) for number in range(20, 28)]


def test_every_error_is_an_ink_error() -> None:
    assert all(issubclass(kind, InkError) for kind in (SaveInvalidError, EngineCrashedError))
