"""What is known already costs no call, no turn and no money; what should not be kept is not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from agent_core import (
    AssistantMessage,
    CallReport,
    LlmContext,
    MemoryJournal,
    Model,
    ModelCall,
    StreamDone,
    StreamOptions,
    TextContent,
    ThinkingContent,
    Usage,
    UserMessage,
    stream_completion,
)
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, answer, call, calls, failure
from deploy.local.ports import free_port
from shared.encoding import dumps
from shared.kept_answers import MOST_BYTES, KeptAnswers
from shared.records import LedgerEntry
from tests.shared.traces import keys_with
from tests.story.playing import ruling, verdict
from tests.waiting import PATIENCE
from tests.worker.attempts import claim
from worker.agents import Resources
from worker.known_answers import KnownAnswers, Lookups
from worker.metering import Meter
from worker.tiers import ModelAccess, ModelTiers

CONTEXT = LlmContext("You are the referee.", [UserMessage("I greet him.")])
EXACT = StreamOptions(temperature=0.0, purpose="referee")
SPARE = Model("spare", "other")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Redis alone: nothing here needs a database."""
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


class Turns:
    """A limiter that counts who was let in."""

    def __init__(self) -> None:
        self.taken = 0

    @asynccontextmanager
    async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
        self.taken += 1
        yield lambda final: None


class Books:
    """Where calls are entered; nobody asks it what is left."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def enter(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)

    async def left(self) -> Decimal | None:
        raise AssertionError("no second call is made")


class Players:
    """Users of one worker, whose calls go through all that a deployment has."""

    def __init__(self, redis: Redis, *replies: Reply) -> None:
        self.model = ScriptedModel(replies)
        self.turns = Turns()
        self.books = Books()
        self.lookups: Lookups = Lookups()
        self._resources = Resources(
            SCRIPTED_MODEL,
            None,
            self._no_story,
            stream_fn=self.model,
            limiter=self.turns,
            tiers=ModelTiers(ModelAccess(SCRIPTED_MODEL), fallbacks=[ModelAccess(SPARE)]),
            answers=KnownAnswers(KeptAnswers(redis, patience=PATIENCE), 60, self.lookups),
        )

    async def asks(
        self,
        user: str,
        options: StreamOptions = EXACT,
        *,
        model: Model = SCRIPTED_MODEL,
        context: LlmContext = CONTEXT,
        journal: MemoryJournal | None = None,
        left: Decimal | None = None,
    ) -> AssistantMessage | None:
        """What is answered; None for a failure."""
        meter = Meter(replace(claim(), left_usd=left), self.books, self._resources.tariff)
        stream_fn = self._resources.for_user(user, nullcontext, meter).stream_fn
        events = stream_completion(model, context, options, stream_fn=stream_fn, journal=journal)
        final = [event async for event in events][-1]
        return final.message if isinstance(final, StreamDone) else None

    @staticmethod
    async def _no_story(story_hash: str) -> str:
        raise AssertionError(story_hash)


async def test_the_same_is_asked_once_and_a_hit_costs_nothing(redis: Redis) -> None:
    players = Players(redis, paid(ruling(1)))

    first = await players.asks("anna")
    second = await players.asks("bert", left=Decimal(0))

    assert first is not None
    assert second is not None
    assert (first.text, first.usage.total_tokens) == (ruling(1), 30)
    assert (second.text, second.usage) == (ruling(1), Usage())
    assert len(players.model.requests) == players.turns.taken == len(players.books.entries) == 1
    assert players.lookups == {("referee", "miss"): 1, ("referee", "hit"): 1}


async def test_whose_and_when_is_no_part_of_what_is_asked(redis: Redis) -> None:
    players = Players(redis, ruling(1))

    for number in range(3):
        options = replace(EXACT, session_id=f"session {number}", api_key=f"key {number}")
        words = UserMessage("I greet him.", timestamp=number)
        assert await players.asks("anna", options, context=replace(CONTEXT, messages=[words]))

    assert len(players.model.requests) == 1


OTHERS: dict[str, dict[str, Any]] = {
    "other words": {"context": LlmContext("You are the referee.", [UserMessage("I greet her.")])},
    "other instructions": {"context": LlmContext("You are.", [UserMessage("I greet him.")])},
    "another place": {"model": replace(SCRIPTED_MODEL, base_url="http://127.0.0.1:9")},
    "another form": {"model": replace(SCRIPTED_MODEL, extra={"response_format": {"type": "json"}})},
    "other headers": {"model": replace(SCRIPTED_MODEL, headers={"X-Group": "b"})},
    "another way": {"model": replace(SCRIPTED_MODEL, api="openai")},
    "another cap": {"options": replace(EXACT, max_tokens=7)},
}


@pytest.mark.parametrize("other", OTHERS)
async def test_what_differs_at_all_is_asked(redis: Redis, other: str) -> None:
    players = Players(redis, ruling(1), ruling(2))

    await players.asks("anna")
    answer = await players.asks("anna", **OTHERS[other])

    assert answer is not None
    assert answer.text == ruling(2)


NEVER = {
    "sampled": replace(EXACT, temperature=0.7),
    "as the model likes": replace(EXACT, temperature=None),
    "a companion": replace(EXACT, purpose=""),
    "a narrator": replace(EXACT, purpose="narrator"),
    "a consolidation": replace(EXACT, purpose="consolidation"),
    "not wanted": replace(EXACT, use_cache=False),
}


@pytest.mark.parametrize("options", NEVER)
async def test_other_calls_are_never_kept(redis: Redis, options: str) -> None:
    players = Players(redis, ruling(1), ruling(2))

    for _ in range(2):
        await players.asks("anna", NEVER[options])

    assert len(players.model.requests) == 2
    assert await redis.keys() == []
    assert players.lookups.total() == 0


USELESS: dict[str, Reply] = {
    "no JSON": "I would say it is the first one.",
    "half of it": ruling(1)[:-1],
    "other JSON": verdict(),
    "cut off": answer(ruling(1), stop_reason="length"),
    "a tool": calls(call("a", "roll_dice")),
    "too long": ruling(1, reason="x" * MOST_BYTES),
}


@pytest.mark.parametrize("useless", USELESS)
async def test_an_answer_of_no_use_is_not_kept(redis: Redis, useless: str) -> None:
    players = Players(redis, USELESS[useless], ruling(2))

    assert await players.asks("anna")
    assert await redis.keys() == []
    second = await players.asks("anna")

    assert second is not None
    assert second.text == ruling(2)


async def test_a_failure_is_not_kept(redis: Redis) -> None:
    players = Players(redis, failure("down"), failure("down, too"), ruling(2))

    assert await players.asks("anna") is None
    assert await players.asks("anna")
    assert len(players.model.requests) == 3


async def test_who_stands_in_for_a_model_does_not_answer_for_it_later(redis: Redis) -> None:
    stand_in = replace(answer(ruling(3)), model="spare", provider="other")
    players = Players(redis, failure("down"), stand_in, ruling(1))

    assert await players.asks("anna")
    again = await players.asks("anna")

    asked = [request.model.id for request in players.model.requests]
    assert asked == ["scripted", "spare", "scripted"]
    assert again is not None
    assert again.text == ruling(1)


async def test_thoughts_are_not_kept(redis: Redis) -> None:
    thinking = AssistantMessage(
        [ThinkingContent("anna-canary"), TextContent(verdict(trust=4))], "scripted", "test"
    )
    players = Players(redis, thinking)
    judged = replace(EXACT, purpose="judge")

    await players.asks("anna", judged)
    second = await players.asks("anna", judged)

    assert second is not None
    assert second.content == [TextContent(verdict(trust=4))]
    assert await keys_with(redis, ["anna-canary"]) == set()


async def test_the_journal_has_the_step_of_a_hit(redis: Redis) -> None:
    players = Players(redis, ruling(1))
    asked, known = MemoryJournal(), MemoryJournal()

    await players.asks("anna", journal=asked)
    await players.asks("bert", journal=known)
    await redis.flushall()
    await players.asks("bert", journal=known)

    assert known.steps == asked.steps
    assert known.outputs[0]["content"] == asked.outputs[0]["content"]
    assert len(players.model.requests) == 1


KEPT = answer(ruling(1)).to_dict()
SPOILT: dict[str, Any] = {
    "nothing": {},
    "no content": KEPT | {"content": 7},
    "no text": KEPT | {"content": [{"type": "text"}]},
    "another model": KEPT | {"model": "other"},
    "a failure": KEPT | {"stop_reason": "error"},
    "no reason": KEPT | {"stop_reason": "because"},
    "no ruling": KEPT | {"content": [{"type": "text", "text": "Hm."}]},
}


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_what_is_kept_and_spoilt_is_a_miss_and_replaced(redis: Redis, spoilt: str) -> None:
    players = Players(redis, ruling(1), ruling(2))
    await players.asks("anna")
    (key,) = [key async for key in redis.scan_iter(match="fireside:answer:*")]
    await redis.set(key, dumps(SPOILT[spoilt]), ex=60)

    texts = [one.text for _ in range(2) if (one := await players.asks("anna")) is not None]

    assert texts == [ruling(2)] * 2
    assert players.lookups == {("referee", "miss"): 2, ("referee", "hit"): 1}


async def test_without_redis_everything_is_asked() -> None:
    away = Redis(host="127.0.0.1", port=free_port(), retry=Retry(NoBackoff(), 0))
    players = Players(away, ruling(1), ruling(2))

    assert await players.asks("anna")
    assert await players.asks("anna")
    await away.aclose()

    assert players.lookups == {("referee", "miss"): 2}


def paid(text: str) -> AssistantMessage:
    return replace(answer(text), usage=Usage(input=20, output=10, total_tokens=30))
