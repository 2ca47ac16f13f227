"""When two players' calls are byte for byte the same, by the real prompts."""

from typing import Any

import orjson

from agent_core import LlmContext
from agent_core.openai_stream import _request
from agent_core.response_cache import request_hash
from agent_core.testing import ScriptedRequest
from tests.story.playing import Table, begun, ruling, verdict

WORDS = "I wish him a good evening"
NODS = "He nods, and looks at his boots."


async def played(*tellings: str) -> Table:
    """A player of their own: each telling is a narrator's, to the same words."""
    table = await begun()
    await table.choose("Greet the guard")
    for telling in tellings:
        await table.say(WORDS, ruling(None), telling, verdict())
    return table


def sent(request: ScriptedRequest) -> tuple[bytes, str]:
    """What a provider gets, and the hash that it is kept under."""
    context = LlmContext(request.system_prompt, list(request.messages))
    body: Any = _request(request.model, context, request.options)
    return orjson.dumps(body), request_hash(request.model, context, request.options)


async def test_the_same_words_in_the_same_scene_are_the_same_request() -> None:
    anna, bert = [await played(NODS) for _ in range(2)]

    assert anna.session.id != bert.session.id
    for mine, theirs in zip(anna.model.requests, bert.model.requests, strict=True):
        assert mine.options.session_id != theirs.options.session_id
        assert sent(mine) == sent(theirs)


async def test_what_a_narrator_told_before_is_part_of_the_next_request() -> None:
    anna, bert = await played(NODS, NODS), await played("He yawns.", NODS)

    first, second = [
        [sent(mine) == sent(theirs) for mine, theirs in zip(*pair, strict=True)]
        for pair in (
            (anna.model.requests[:3], bert.model.requests[:3]),
            (anna.model.requests[3:], bert.model.requests[3:]),
        )
    ]
    # Referee, narrator, judge: the narrator tells one evening in two ways.
    assert first == [True, True, False]
    assert second == [False, False, True]
