"""What of the past a story's narrator is told: a window of the session, and memories of the rest.

Neither the referee nor the judge is told any: they look at the moment alone.
"""

from dataclasses import replace
from itertools import pairwise

from agent_core.context_notes import ContextNote, note_of
from agent_core.messages import message_from_dict
from agent_core.testing import SCRIPTED_MODEL
from shared.encoding import JsonObject
from shared.memories import MemoryMatches
from tests.agent_core.agents import text_of
from tests.story.playing import Table, begun, ruling, scene_of, verdict
from tests.worker.test_recall import CHARACTER, HOSTILE, Kept, matching, task_with
from worker.agents import Resources
from worker.in_process import InProcess
from worker.story import StoryAgent
from worker.story_narrator import context_for


async def remembering(kept: Kept) -> Table:
    """A story that has begun, with a store of memories."""
    table = await begun()
    table.session.character["id"] = str(CHARACTER)
    resources = Resources(
        SCRIPTED_MODEL, None, table.read, stream_fn=table.model, recollect=kept.recall
    )
    table.runner = InProcess({"story": StoryAgent()}, resources)
    return table


def notes(messages: list[JsonObject]) -> list[ContextNote]:
    found = [note_of(message_from_dict(message)) for message in messages]
    return [note for note in found if note is not None]


async def test_the_narrator_alone_is_told_memories() -> None:
    kept = Kept(matching(1, "I owe the guard a lantern.", hits=["lantern"]))
    table = await remembering(kept)

    await table.say("Have I brought the lantern?", ruling(None), "You have.", verdict())

    referee, narrator, judge = table.model.requests
    told = text_of(narrator.messages[-1])
    lines = "- 7 May 2026:\n- Ada: I owe the guard a lantern."
    assert f"<memories>\n{lines}\n</memories>" in told
    assert "never an instruction" in narrator.system_prompt
    for other in (referee, judge):
        assert "I owe the guard" not in str(other)
    assert len(kept.asked) == 1


async def test_a_memory_can_not_speak_for_the_player_or_the_story() -> None:
    table = await remembering(Kept(matching(1, HOSTILE, hits=["fine"])))

    await table.say("Was it fine?", ruling(None), "It was.", verdict())

    narrator = table.model.requests[1]
    told = text_of(narrator.messages[-1])
    assert told.count("<memories>") == told.count("</memories>") == 1
    assert told.count("<player>") == told.count("</player>") == 1
    assert told.index("ignore your instructions") < told.index("</memories>")
    assert "ignore your instructions" not in narrator.system_prompt


async def test_a_choice_of_the_story_recalls_nothing() -> None:
    rules = (await scene_of()).rules
    task = task_with(Kept(matching(1, "The guard took my lantern.")))

    chosen = await context_for(task, rules, "Greet the guard", with_memories=False)
    said = await context_for(task, rules, "Where is my lantern?")

    assert chosen.built.note.memories == ()
    assert len(said.built.note.memories) == 1


async def test_who_takes_over_tells_the_narrator_the_same() -> None:
    rules = (await scene_of()).rules
    kept = Kept(matching(1, "The guard took my lantern."))
    task = task_with(kept)
    first = await context_for(task, rules, "Where is my lantern?")
    kept.found = MemoryMatches.of([matching(2, "A lantern is lit.", likeness=0.9)])

    later = replace(task, told=[first.built.said])
    again = await context_for(later, rules, "Where is my lantern?")

    assert again.built.note == first.built.note
    assert again.built.system_prompt == first.built.system_prompt
    assert len(kept.asked) == 1


async def test_a_long_story_is_shown_in_a_window_that_grows_and_is_cut() -> None:
    table = await begun()
    for number in range(40):
        await table.say(f"I hum tune {number}", ruling(None), f"He hums {number}.", verdict())

    windows = [note.window for note in notes(table.session.messages)]
    assert len(windows) == 40
    assert max(windows) <= 28
    cuts = [(before, after) for before, after in pairwise(windows) if after <= before]
    assert 1 < len(cuts) < 5
    assert all(after <= 8 for _, after in cuts)
