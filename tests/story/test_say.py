"""A player's own words on their whole way: referee, dice and ink, narrator, judge."""

from agent_core import AssistantMessage
from agent_core.testing import answer
from tests.story.playing import GATE, begun, plain, ruling, told, verdict

GREET = {"id": "gate.0.c-0", "text": "Greet the guard", "tags": []}
CLIMB = {"id": "gate.0.c-1", "text": "Climb the wall", "tags": ["dc:12", "stat:wits"]}
LEAVE = {"id": "gate.0.c-2", "text": "Leave", "tags": []}

SCENE = '"Evening," says the guard.\nA guard stands before the gate.'


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str, *, model: str = "scripted", provider: str = "test") -> dict[str, object]:
    usage = {"input": 0, "output": 0, "cache_read": 0, "cache_write": 0}
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text}] if text else [],
        "model": model,
        "provider": provider,
        "usage": {**usage, "total_tokens": 0, "cost": 0.0},
        "stop_reason": "stop",
    }


async def test_every_event_of_a_whole_say() -> None:
    table = await begun()
    before = len(table.session.events)

    await table.say(
        "I wish him a good evening",
        ruling(1, 0.9),
        "You wish him well, and he grunts.",
        verdict(["He did not grunt."], trust=4, mood="cross", secret=9),
    )

    choices = [GREET, CLIMB, LEAVE]
    variables = {"mood": "cross", "trust": 4, "met": True}
    view = {"state": {"scene": SCENE, "ended": False, "variables": variables}, "choices": choices}
    result = {
        "text": "You wish him well, and he grunts.",
        "messages": [2, 3],
        "decision": {
            "choice": GREET,
            "referee": {
                "choice": "gate.0.c-0",
                "confidence": 0.9,
                "by": "model",
                "reason": "they say so",
            },
            "check": None,
            "judge": {
                "changes": {"mood": "cross", "trust": 4},
                "contradictions": ["He did not grunt."],
                "usable": True,
            },
            "calls": [
                {"purpose": "referee", "tokens": 0},
                {"purpose": "narrator", "tokens": 0},
                {"purpose": "judge", "tokens": 0},
            ],
        },
        **view,
    }
    usage = {"input": 0, "output": 0, "cache_read": 0, "cache_write": 0}
    words = user("I wish him a good evening")
    narration = assistant("You wish him well, and he grunts.")
    noted = table.session.messages[1]["details"]
    assert noted["context"]["window"] == noted["context"]["kept"] == 1
    assert told(table.session.events[before:]) == [
        ("task_started", {"attempt": 1}),
        ("agent_start", {}),
        ("turn_start", {}),
        ("message_start", {"message": words, "number": 0}),
        ("message_end", {"message": words | {"details": noted}, "number": 0}),
        ("message_start", {"message": assistant(""), "number": 1}),
        ("message_end", {"message": narration, "number": 1}),
        ("turn_end", {}),
        ("agent_end", {}),
        ("state_changed", view),
        (
            "task_completed",
            {"result": result, "usage": {**usage, "total_tokens": 0, "cost": 0.0}},
        ),
    ]


async def test_the_journal_has_one_step_per_call_under_fixed_numbers() -> None:
    table = await begun()

    await table.say("hello there", ruling(1), "He nods.", verdict())

    steps = [(no, step.status) for (task, no), step in sorted(table.session.steps.items())]
    assert steps == [(0, "done"), (1, "done"), (2, "done")]


async def test_what_is_none_of_the_choices_leaves_the_story_where_it_is() -> None:
    table = await begun()
    save = table.session.state["ink"]

    result = await table.say("I hum a tune", ruling(None), "The guard hums along.", verdict())

    assert result["text"] == "The guard hums along."
    assert result["decision"]["choice"] is None
    assert table.session.state["ink"] == save
    assert result["choices"] == [GREET, CLIMB, LEAVE]


async def test_a_choice_without_enough_confidence_is_not_taken() -> None:
    table = await begun()

    result = await table.say("hm, the guard", ruling(1, 0.59), "He looks back.", verdict())

    assert result["decision"]["choice"] is None
    assert result["decision"]["referee"]["confidence"] == 0.59
    assert not table.variables["met"]


async def test_a_story_may_ask_for_less_confidence() -> None:
    table = await begun(GATE.replace("# stats", "# confidence: 0.5\n# stats"))

    result = await table.say("hm, the guard", ruling(1, 0.59), "He nods.", verdict())

    assert result["decision"]["choice"] == GREET


async def test_the_prompts_go_from_what_stays_to_what_is_new() -> None:
    table = await begun()
    await table.say("I hum", ruling(None), "He hums.", verdict())
    await table.say("I hum louder", ruling(None), "He sings.", verdict())

    referee, narrator, judge = table.model.requests[3:]
    again = table.model.requests[0:3]
    assert [one.system_prompt for one in table.model.requests[3:]] == [
        one.system_prompt for one in again
    ]
    assert plain([one.to_dict() for one in narrator.messages[:-1]]) == [
        assistant("A guard stands before the gate.", model="", provider=""),
        user("<player>I hum</player>"),
        assistant("He hums.", model="", provider=""),
    ]
    for number in (3, 4, 5):
        assert table.prompt(number).endswith("<player>I hum louder</player>")
    assert referee.options.temperature == judge.options.temperature == 0.0
    assert "1. Greet the guard\n2. Climb the wall\n3. Leave" in table.prompt(3)
    assert "gate.0" not in "".join(table.prompt(number) for number in (3, 4, 5))


async def test_the_narrator_is_told_what_ink_told_as_the_truth() -> None:
    table = await begun()

    await table.say("I say good evening", ruling(1), "He nods.", verdict())

    prompt = table.prompt(1)
    assert "What the player did, in the story's words: Greet the guard" in prompt
    assert f"The new text of the story:\n{SCENE}" in prompt


async def test_the_judge_may_only_change_what_the_story_lists_as_the_story_allows() -> None:
    table = await begun()
    proposed = verdict(trust=9, mood="furious", met=True, wits=20, nothing=1, secret="two")

    result = await table.say("I bow", ruling(None), "He bows.", proposed)

    assert result["decision"]["judge"]["changes"] == {}
    assert table.variables == {"mood": "calm", "trust": 3, "met": False}


async def test_what_a_player_may_not_see_is_changed_and_not_told() -> None:
    table = await begun()

    result = await table.say("I bow", ruling(None), "He bows.", verdict(secret=2))

    assert result["decision"]["judge"]["changes"] == {}
    assert "secret = 1 (any)" in table.prompt(2)
    await table.say("I bow again", ruling(None), "He bows.", verdict())
    assert "secret = 2 (any)" in table.prompt(5)


async def test_a_story_can_do_without_the_judge() -> None:
    table = await begun(GATE.replace("# stats", "# judge: off\n# stats"))

    result = await table.say("I bow", ruling(None), "He bows.")

    assert result["decision"]["judge"] is None


async def test_a_story_that_has_ended_still_answers() -> None:
    table = await begun()
    await table.choose("Leave")

    result = await table.say("I look back", "The gate is small already.")

    assert result["text"] == "The gate is small already."
    assert (result["choices"], result["state"]["ended"]) == ([], True)


async def test_choosing_calls_no_model() -> None:
    table = await begun()

    result = await table.choose("Greet the guard")

    assert result["text"] == SCENE
    assert result["decision"] == {
        "choice": GREET,
        "referee": None,
        "check": None,
        "judge": None,
        "calls": [],
    }
    assert table.model.requests == []


async def test_a_story_may_have_its_choices_narrated() -> None:
    table = await begun(GATE.replace("# stats", "# narrate: choices\n# stats"))
    table.script("He nods, slowly.", RuntimeError("down"))

    assert (await table.choose("Greet the guard"))["text"] == "He nods, slowly."
    assert (await table.choose("Greet the guard"))["text"] == SCENE


async def test_continuing_shows_the_scene_again() -> None:
    table = await begun()

    result = await table.done("continue")

    assert result["text"] == "A guard stands before the gate."
    assert result["choices"] == [GREET, CLIMB, LEAVE]


async def test_a_turn_without_text_leaves_no_message_and_keeps_the_scene() -> None:
    table = await begun("A hall.\n+ [Think] -> more\n=== more\n+ [Go] Gone. -> END\n")

    result = await table.choose("Think")

    assert (result["text"], result["messages"]) == ("", [2])
    assert result["state"]["scene"] == "A hall."


async def test_a_session_that_never_began_begins_by_continue() -> None:
    table = await begun()
    table.session.state, table.session.view = {}, {"state": {}, "choices": []}

    assert await table.failed("say", text="hello") == "story_not_begun"
    assert await table.failed("choose", choice_id="gate.0.c-0") == "story_not_begun"
    assert (await table.done("continue"))["text"] == "A guard stands before the gate."


async def test_the_usage_of_every_call_is_counted() -> None:
    def paid(text: str, tokens: int) -> AssistantMessage:
        message = answer(text)
        message.usage.input, message.usage.total_tokens = tokens, tokens
        return message

    table = await begun()

    result = await table.say("hello", paid(ruling(1), 5), paid("He nods.", 7), paid(verdict(), 9))

    assert [call["tokens"] for call in result["decision"]["calls"]] == [5, 7, 9]
    assert table.session.events[-1].data["usage"]["total_tokens"] == 21
