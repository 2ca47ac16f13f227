"""What a model gets wrong, or that there is none: the task is done and the story goes on."""

import json

import pytest

from agent_core.testing import Reply, ScriptedRequest, ScriptedStream, answer, failure, streamed
from shared.events import Delta
from tests.story.playing import GATE, begun, ruling, verdict
from worker.story_calls import NARRATION_CHARACTERS

LONG = "word " * 10_000
SHRUG = "The guard yawns.\n\n- Greet the guard\n- Climb the wall\n- Leave"

NONSENSE: dict[str, Reply] = {
    "prose": "I think the player wants to greet the guard.",
    "nothing": answer(""),
    "half JSON": '{"choice": 1, "confidence": 0.9, "check": {"stat": "wi',
    "a choice that is not there": ruling(4, 1.0),
    "a negative choice": ruling(-1, 1.0),
    "half a choice": '{"choice": 1.5, "confidence": 1}',
    "an id": ruling("gate.0.c-0", 1.0),
    "a list": "[1, 0.9]",
    "a huge number": f'{{"choice": 1{"0" * 400}, "confidence": 1}}',
    "a deep nest": '{"choice": ' + "[" * 5_000,
    "10,000 tokens": LONG,
    "10,000 tokens of JSON": '{"choice": 1, "confidence": 1, "reason": "' + LONG + '"}',
    "an error": RuntimeError("the provider is down"),
    "a call that ends in an error": failure("overloaded", text='{"choice": 1'),
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_of_the_referee_leaves_the_ruling_to_the_words(reply: Reply) -> None:
    table = await begun()

    result = await table.say("I greet the guard!", reply, "He nods.", verdict())

    referee = {"choice": "gate.0.c-0", "confidence": 1.0, "by": "words", "reason": ""}
    assert result["decision"]["referee"] == referee
    assert table.variables["met"]
    await table.still_plays()


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_of_the_judge_changes_nothing(reply: Reply) -> None:
    table = await begun()

    result = await table.say("I bow", ruling(None), "He bows.", reply)

    assert result["decision"]["judge"] == {"changes": {}, "contradictions": [], "usable": False}
    assert result["text"] == "He bows."
    await table.still_plays()


CHANGES = {
    "no object": [1, 2],
    "true for a number": {"trust": True},
    "text for a number": {"trust": "4"},
    "half a number": {"trust": 3.5},
    "not a number": {"trust": float("nan")},
    "far too much": {"trust": 10**400},
    "a list for a word": {"mood": ["calm"]},
    "a number for a word": {"mood": 1},
    "a divert": {"trust": {"^->": "gate"}},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
async def test_changes_of_the_wrong_kind_are_left_out(changes: object) -> None:
    table = await begun()
    before = table.variables

    await table.say("I bow", ruling(None), "He bows.", json.dumps({"changes": changes}))

    assert table.variables == before
    await table.still_plays()


@pytest.mark.parametrize(
    "reply",
    [
        f"Sure!\n```json\n{ruling(1)}\n```\nHope that helps.",
        '{"choice": "1", "confidence": "0.9"}',
        f"Options are {{1, 2}}. {ruling(1)}",
        '{"choice": 1.0, "confidence": 7}',
    ],
    ids=["fenced", "numbers as text", "chatter with braces", "out of range"],
)
async def test_what_can_be_read_is_read(reply: str) -> None:
    table = await begun()

    result = await table.say("say hi to that fellow", reply, "He nods.", verdict())

    assert result["decision"]["referee"]["by"] == "model"
    assert result["decision"]["choice"]["text"] == "Greet the guard"


async def test_a_ruling_that_does_not_say_how_sure_it_is_takes_nothing() -> None:
    table = await begun()

    result = await table.say("hi", '{"choice": 1}', "He nods.", verdict())

    assert result["decision"]["choice"] is None


async def test_the_story_plays_without_any_model() -> None:
    table = await begun(otherwise=RuntimeError("no model"))

    greeted = await table.done("say", text="greet the guard")
    unknown = await table.done("say", text="I sing a song about herrings")
    left = await table.done("say", text="3")

    assert greeted["text"] == '"Evening," says the guard.\nA guard stands before the gate.'
    assert unknown["text"] == SHRUG
    assert unknown["decision"]["choice"] is None
    assert left["text"] == "You leave the gate behind you."
    assert (await table.done("say", text="hello?"))["text"] == "The guard yawns."


async def test_no_judge_is_asked_of_what_no_narrator_told() -> None:
    table = await begun()

    result = await table.say("I bow", ruling(None), RuntimeError("down"))

    assert result["text"] == SHRUG
    assert result["decision"]["judge"] is None
    assert [call["purpose"] for call in result["decision"]["calls"]] == ["referee", "narrator"]


async def test_a_narration_that_breaks_off_ends_as_inks_own_words() -> None:
    def break_off(stream: ScriptedStream, request: ScriptedRequest) -> None:
        for event in streamed(answer("You step up and"))[:-1]:
            stream.push(event)
        stream.fail(failure("connection lost", text="You step up and"))

    table = await begun()

    result = await table.say("hello", ruling(1), break_off)

    streamed_text = "".join(one.text for one in table.shown if isinstance(one, Delta))
    assert streamed_text == "You step up and"
    assert result["text"] == '"Evening," says the guard.\nA guard stands before the gate.'
    assert table.session.messages[-1]["content"][0]["text"] == result["text"]


async def test_a_narration_without_an_end_is_cut_off() -> None:
    table = await begun()

    def endless(stream: ScriptedStream, request: ScriptedRequest) -> None:
        for event in streamed(answer(LONG))[:-1]:
            stream.push(event)

    result = await table.say("hello", ruling(None), endless, verdict())

    assert result["text"] == LONG[:NARRATION_CHARACTERS]
    assert table.session.messages[-1]["stop_reason"] == "length"
    await table.still_plays()


async def test_a_refused_answer_format_is_asked_for_in_words() -> None:
    table = await begun()
    refusal = RuntimeError("response_format is not supported by this model")

    result = await table.say("hello", refusal, ruling(1), "He nods.", verdict())

    first, second = table.model.requests[:2]
    assert "response_format" in first.model.extra
    assert "response_format" not in second.model.extra
    assert result["decision"]["referee"]["by"] == "model"
    assert len(result["decision"]["calls"]) == 3


async def test_long_input_is_cut_for_prompts_and_kept_in_the_transcript() -> None:
    table = await begun()
    words = "hello " * 2_600

    await table.say(words, ruling(None), "He waits.", verdict())

    assert all(len(table.prompt(number)) < 3_500 for number in range(3))
    assert table.session.messages[-2]["content"] == words


async def test_a_hundred_choices_fit_into_a_prompt() -> None:
    choices = "".join(f"+ [Take number {n} {'of many ' * 100}] -> a\n" for n in range(100))
    table = await begun(f"-> a\n=== a\nMany.\n{choices}")

    result = await table.say("the 90th", ruling(90), "You reach out.")

    assert len(table.prompt(0)) < 40 * 350
    assert result["decision"]["referee"]["by"] == "words"


async def test_a_story_without_a_shrug_shrugs_all_the_same() -> None:
    table = await begun(
        GATE.replace("# shrug: The guard yawns.\n", ""), otherwise=RuntimeError("no model")
    )

    result = await table.done("say", text="I dance")

    assert result["text"].startswith("Nothing comes of it.\n\n- Greet the guard")


@pytest.mark.parametrize("reply", [ruling(3, 0.5), ruling(None, 0.1), '{"choice": null}'])
async def test_where_the_model_is_not_sure_clear_words_decide(reply: str) -> None:
    table = await begun()

    clear = await table.say("I greet the guard", reply, "He nods.", verdict())
    unclear = await table.say("I wave at the rising sun", reply, "Hm.", verdict())

    assert clear["decision"]["choice"]["text"] == "Greet the guard"
    assert clear["decision"]["referee"]["by"] == "words"
    assert unclear["decision"]["choice"] is None
    assert unclear["decision"]["referee"]["by"] == "model"


async def test_a_model_that_is_sure_of_no_choice_is_believed() -> None:
    table = await begun()

    result = await table.say("I greet the guard", ruling(None, 0.9), "Hm.", verdict())

    assert result["decision"]["choice"] is None


@pytest.mark.parametrize("words", ["1", " option 1.", "Greet the guard", "greet THE guard!"])
async def test_a_choice_in_its_own_words_needs_no_referee(words: str) -> None:
    table = await begun()

    result = await table.say(words, "He nods.", verdict())

    referee = {"choice": "gate.0.c-0", "confidence": 1.0, "by": "words", "reason": ""}
    assert result["decision"]["referee"] == referee
    assert [call["purpose"] for call in result["decision"]["calls"]] == ["narrator", "judge"]
