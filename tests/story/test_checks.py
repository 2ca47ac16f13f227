"""Throws: what is thrown, what a story is told of it, what a free deed takes."""

from uuid import UUID

import pytest

from tests.story.playing import GATE, begun, compiled, last_lamp, ruling, verdict
from worker.ink.engine import Choice, InkEngine
from worker.ink.throws import Check, Throw
from worker.story_scene import Dice, begin, check_of, take

LATER = UUID(int=9)


def tagged(*tags: str) -> Choice:
    return Choice("c", 0, "Climb", tags)


@pytest.mark.parametrize(
    ("tags", "check"),
    [
        (("dc:12", "stat:wits"), Check("wits", 12)),
        (("stat: wits", "DC: 12"), Check("wits", 12)),
        (("dc:12",), Check(None, 12)),
        (("stat:wits",), None),
        ((), None),
        (("dc:hard", "stat:wits"), None),
        (("dc:", "stat:wits"), None),
        (("dc:12.5",), None),
        (("dc:1", "dc:2"), Check(None, 1)),
    ],
)
def test_the_tags_of_a_choice(tags: tuple[str, ...], check: Check | None) -> None:
    assert check_of(tagged(*tags)) == check


def test_a_throw_adds_the_stat_and_meets_its_difficulty() -> None:
    assert Throw(Check("wits", 12), 10, 2).to_dict() == {
        "stat": "wits",
        "dc": 12,
        "roll": 10,
        "modifier": 2,
        "total": 12,
        "success": True,
    }
    assert not Throw(Check("wits", 13), 10, 2).success


@pytest.mark.parametrize("value", ["high", True, None, ("a.b",)])
def test_a_stat_that_is_no_number_adds_nothing(value: object) -> None:
    throw = Dice(LATER).throw(Check("wits", 12), {"wits": value})  # type: ignore[dict-item]  # what ink may hold

    assert throw.modifier == 0


def test_one_task_throws_the_same_dice_whenever_it_runs() -> None:
    def throws(task: UUID) -> list[int]:
        dice = Dice(task)
        return [dice.throw(Check(None, 10), {}).roll, *(dice.roll(6) for _ in range(20))]

    assert throws(LATER) == throws(LATER)
    assert throws(LATER) != throws(UUID(int=10))
    assert all(1 <= thrown <= 20 for thrown in throws(LATER))


def test_the_storys_own_first_die_of_twenty_shows_the_check() -> None:
    dice = Dice(LATER)
    throw = dice.throw(Check(None, 10), {})

    assert 1 <= dice.roll(6) <= 6
    assert dice.roll(20) == throw.roll
    assert [dice.roll(20) for _ in range(5)] != [throw.roll] * 5


async def test_a_story_is_told_of_the_throw_in_its_variables() -> None:
    scene = await begin(InkEngine(compiled(GATE)), LATER)
    texts = set()
    for number in range(40):
        after, throw = await take(scene, scene.turn.choices[1], Dice(UUID(int=number)))
        assert throw is not None
        assert (throw.check, throw.modifier) == (Check("wits", 12), 2)
        first_line = after.turn.lines[0].text
        told = f"You are over the wall, {throw.roll} and {throw.total}."
        assert first_line == (told if throw.success else "You fall.")
        texts.add(throw.success)

    assert texts == {True, False}


async def test_a_story_that_throws_itself_agrees_with_the_decision() -> None:
    """The lamp's choices throw by `roll(20)`; the tag at the top of the ladder is a calculation."""
    engine = InkEngine(last_lamp())
    scene = await begin(engine, LATER)
    dark = engine.advance(
        scene.turn.save, path="quay_steps", variables={"oil": 0, "fog": 3, "hands": 4}
    )
    scene = scene.moved(dark)
    climb = scene.turn.choices[0]
    assert climb.tags == ("dc:14", "stat:hands")

    for number in range(40):
        after, throw = await take(scene, climb, Dice(UUID(int=number)))
        assert throw is not None
        tags = {tag for line in after.turn.lines for tag in line.tags}
        assert f"rolled:{throw.total}" in tags
        assert ("teeth in the lantern bail" in after.turn.text) == throw.success


async def test_the_decision_tells_of_a_chosen_throw() -> None:
    table = await begun()

    result = await table.choose("Climb the wall")

    check = result["decision"]["check"]
    assert (check["stat"], check["dc"], check["modifier"]) == ("wits", 12, 2)
    assert check["success"] == (check["roll"] + 2 >= 12)
    assert ("over the wall" in result["text"]) == check["success"]


async def test_the_tags_of_a_choice_go_before_what_the_referee_asks_for() -> None:
    table = await begun()
    easy = {"stat": "wits", "dc": 2}

    result = await table.say("up I go", ruling(2, check=easy), "You try.", verdict())
    greeted = await table.say("hello", ruling(1, check=easy), "He nods.", verdict())

    assert result["decision"]["check"]["dc"] == 12
    assert f"A throw decided: {result['decision']['check']['total']} with wits" in table.prompt(1)
    assert greeted["decision"]["check"] is None


async def test_a_free_deed_may_take_a_throw_that_only_the_narrator_tells() -> None:
    table = await begun()
    save = table.session.state["ink"]
    asked = {"stat": "wits", "dc": 15}

    result = await table.say("I juggle", ruling(None, check=asked), "Down they come.", verdict())

    check = result["decision"]["check"]
    assert (check["stat"], check["dc"]) == ("wits", 15)
    fell = "success" if check["success"] else "failure"
    assert f"A throw decided: {check['total']} with wits against 15, a {fell}." in table.prompt(1)
    assert table.session.state["ink"] == save


@pytest.mark.parametrize(
    ("asked", "check"),
    [
        ({"stat": "secret", "dc": 15}, (None, 15)),
        ({"stat": ["wits"], "dc": 15}, (None, 15)),
        ({"stat": "wits", "dc": 400}, ("wits", 30)),
        ({"stat": "wits", "dc": "11"}, ("wits", 11)),
        ({"stat": "wits", "dc": "hard"}, None),
        ({"stat": "wits"}, None),
        ("wits", None),
    ],
)
async def test_a_check_that_makes_no_sense_is_made_harmless(
    asked: object, check: tuple[str | None, int] | None
) -> None:
    table = await begun()

    result = await table.say(
        "I juggle",
        ruling(None, check=asked),  # type: ignore[arg-type]  # what a model may write
        "Down they come.",
        verdict(),
    )

    made = result["decision"]["check"]
    assert (made and (made["stat"], made["dc"])) == check


async def test_a_tag_with_a_bad_number_makes_a_choice_without_a_throw() -> None:
    table = await begun(GATE.replace("dc:12", "dc:twelve"))

    result = await table.choose("Climb the wall")

    assert result["decision"]["check"] is None
    await table.still_plays()
