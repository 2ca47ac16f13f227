"""Each call of a model is entered once, at its price, however it ends; none without money."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_core import (
    AbortSignal,
    AssistantMessage,
    AssistantMessageEvent,
    CallReport,
    LlmContext,
    Model,
    ModelCall,
    ModelRouter,
    ProviderError,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
    TextContent,
    Usage,
    UserMessage,
    complete,
    stream_completion,
    tool,
)
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, call, calls
from shared.errors import StoreUnavailable
from shared.prices import Price, PriceTable
from shared.records import Claim, LedgerEntry, Step
from tests.waiting import PATIENCE, until, within
from tests.worker.attempts import KeepingStore, claim
from worker.agents import RegisteredAgent, Resources
from worker.attempt import run_attempt
from worker.companion import CompanionAgent
from worker.metering import Meter, Tariff
from worker.task_log import TaskLog
from worker.task_store import AttemptLostError

MODEL = replace(SCRIPTED_MODEL, retry_delay=0.001)
PRICE = Price(Decimal(2), Decimal(8), Decimal("0.5"), Decimal(3), "test-1")
TARIFF = Tariff(PriceTable({MODEL.name: [(date(2000, 1, 1), PRICE)]}), Decimal("1.5"), Decimal(1))
CONTEXT = LlmContext("You are here.", [UserMessage("Where am I?")])
USED = Usage(input=100, output=20, cache_read=1000, cache_write=10, total_tokens=1130)


def answer(text: str = "Here.", used: Usage = USED, stop: Any = "stop") -> AssistantMessage:
    return AssistantMessage([TextContent(text)], usage=replace(used), stop_reason=stop)


class Books:
    """What an attempt enters; `money` is what is left each time that it is asked for."""

    def __init__(self, *money: Decimal | Exception | None) -> None:
        self.entries: list[LedgerEntry] = []
        self._money = list(money)

    def enter(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)

    async def left(self) -> Decimal | None:
        found = self._money.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


async def events_of(
    stream_fn: StreamFn, options: StreamOptions | None = None
) -> list[AssistantMessageEvent]:
    return [
        event async for event in stream_completion(MODEL, CONTEXT, options, stream_fn=stream_fn)
    ]


async def no_story(story_hash: str) -> str:
    raise AssertionError(story_hash)


async def run(
    of: Claim, store: KeepingStore, replies: Sequence[Reply], tariff: Tariff = TARIFF
) -> KeepingStore:
    """An attempt of the companion, whose model answers with the replies."""
    agents: dict[str, RegisteredAgent] = {"companion": CompanionAgent()}
    log = TaskLog(of, store, on_lost=lambda: None)
    await run_attempt(
        of,
        log,
        agents,
        resources=Resources(MODEL, None, no_story, stream_fn=ScriptedModel(replies), tariff=tariff),
        signal=AbortSignal(),
        task_seconds=PATIENCE,
        max_attempts=5,
    )
    return store


async def test_an_answer_is_entered_at_its_price() -> None:
    books = Books()
    stream_fn = Meter(claim(), books, TARIFF).counted(ScriptedModel([answer()]))

    final = (await events_of(stream_fn, StreamOptions(purpose="judge", step=2)))[-1]

    usd = (100 * 2 + 20 * 8 + 1000 * Decimal("0.5") + 10 * 3) / Decimal(1_000_000)
    assert books.entries == [
        LedgerEntry(
            0,
            "test/scripted",
            "judge",
            "done",
            reported=True,
            step=2,
            input=100,
            output=20,
            cache_read=1000,
            cache_write=10,
            usd=usd,
            prices="test-1",
            mark_up=Decimal("1.5"),
        )
    ]
    assert isinstance(final, StreamDone)
    assert final.message.usage.cost == float(usd)


async def test_a_failed_answer_counts_what_was_reported_of_it() -> None:
    books = Books()
    failed = answer(stop="error")
    stream_fn = Meter(claim(), books, TARIFF).counted(ScriptedModel([failed]))

    await events_of(stream_fn)

    (entry,) = books.entries
    assert (entry.outcome, entry.reported, entry.input) == ("error", True, 100)


async def test_a_refused_call_costs_nothing() -> None:
    books = Books()
    stream_fn = Meter(claim(), books, TARIFF).counted(
        ScriptedModel([ProviderError("overloaded", status=503)])
    )

    final = (await events_of(stream_fn))[-1]

    (entry,) = books.entries
    assert isinstance(final, StreamError)
    assert (entry.outcome, entry.reported) == ("error", False)
    assert entry.usd == 0
    assert entry.estimated_usd == 0


async def test_who_hangs_up_before_the_end_does_not_pay_less() -> None:
    books = Books()
    stream_fn = Meter(claim(), books, TARIFF).counted(ScriptedModel(["One two three four five."]))

    events = stream_completion(MODEL, CONTEXT, stream_fn=stream_fn)
    async with aclosing(events):
        async for event in events:
            if event.type == "text_delta":
                break

    (entry,) = books.entries
    assert (entry.outcome, entry.reported) == ("aborted", False)
    assert (entry.input, entry.output) == (0, 0)
    assert entry.usd == 0
    assert entry.estimated_usd > 0


async def test_an_answer_without_usage_is_estimated() -> None:
    books = Books()
    stream_fn = Meter(claim(), books, TARIFF).counted(ScriptedModel([answer(used=Usage())]))

    await events_of(stream_fn)

    (entry,) = books.entries
    assert (entry.outcome, entry.reported) == ("done", False)
    assert entry.usd == 0
    assert entry.estimated_usd > 0


async def test_nonsense_from_a_provider_fits_the_ledger() -> None:
    books = Books()
    nonsense = Usage(input=10**30, output=-5, cache_read=0, cache_write=0)
    await events_of(Meter(claim(), books, TARIFF).counted(ScriptedModel([answer(used=nonsense)])))

    (entry,) = books.entries
    assert (entry.input, entry.output) == (2**31 - 1, 0)


async def test_a_model_without_a_price_is_warned_of_once_and_costs_nothing_known() -> None:
    tariff = Tariff(PriceTable({"other/model": [(date(2000, 1, 1), PRICE)]}))
    books = Books()
    with capture_logs() as logs:
        for _ in range(3):
            meter = Meter(claim(), books, tariff)
            await events_of(meter.counted(ScriptedModel([answer()])))

    assert [entry.usd for entry in books.entries] == [None] * 3
    assert [entry.input for entry in books.entries] == [100] * 3
    assert [(one["model"], one["log_level"]) for one in logs] == [("test/scripted", "warning")]


async def test_each_try_of_a_call_is_entered() -> None:
    class Open:
        @asynccontextmanager
        async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
            yield lambda final: None

    store, of = KeepingStore(), claim(agent="companion")
    busy = ProviderError("overloaded", status=503, retryable=True)
    model = ScriptedModel([busy, busy, answer()])
    agents: dict[str, RegisteredAgent] = {"companion": CompanionAgent()}
    await run_attempt(
        of,
        TaskLog(of, store, on_lost=lambda: None),
        agents,
        resources=Resources(MODEL, None, no_story, stream_fn=model, limiter=Open(), tariff=TARIFF),
        signal=AbortSignal(),
        task_seconds=PATIENCE,
        max_attempts=5,
    )

    assert store.kinds[-1] == "task_completed"
    assert [(one.no, one.outcome, one.step) for one in store.ledger] == [
        (0, "error", 0),
        (1, "error", 0),
        (2, "done", 0),
    ]


async def test_a_call_goes_into_the_write_of_its_step() -> None:
    store = await run(claim(agent="companion"), KeepingStore(), [answer()])

    assert [(one.step, one.purpose) for one in store.ledger] == [(0, "reply")]
    assert store.outcome is not None
    assert store.outcome.usage is not None
    assert store.outcome.usage["cost"] == float(store.ledger[0].usd or 0)


async def test_a_step_from_the_journal_is_no_call() -> None:
    step = await _journalled()
    store = KeepingStore()

    await run(replace(claim(agent="companion"), steps=[step], attempt=2), store, [])

    assert store.kinds[-1] == "task_completed"
    assert store.ledger == []


async def _journalled() -> Step:
    store = await run(claim(agent="companion"), KeepingStore(), [answer()])
    done = [step for _, steps in store.writes for step in steps if step.status == "done"]
    return done[-1]


async def test_a_call_that_an_earlier_attempt_began_is_entered_as_lost() -> None:
    begun = replace(await _journalled(), status="started", output=None)
    of = replace(claim(agent="companion", attempt=2, attempts=2), steps=[begun])

    store = await run(of, KeepingStore(), [answer()])

    assert [(one.no, one.outcome, one.step) for one in store.ledger] == [
        (0, "lost", 0),
        (1, "done", 0),
    ]


# Budgets


@tool(effect="pure")
async def look() -> str:
    """Look around."""
    return "nothing"


def paid(left: str) -> Claim:
    return replace(claim(agent="companion"), left_usd=Decimal(left))


async def test_without_a_budget_nobody_asks_what_is_left() -> None:
    class Mute(KeepingStore):
        async def left(self, claim: Claim) -> Decimal | None:
            raise AssertionError

    store = await run(claim(agent="companion"), Mute(), [calls(call("a", "roll_dice")), answer()])

    assert store.kinds[-1] == "task_completed"


async def test_no_call_begins_when_the_budget_is_spent() -> None:
    store = await run(paid("0"), KeepingStore(), [])

    assert store.ledger == []
    assert store.outcome is not None
    assert store.events[-1].data["error"]["code"] == "budget_spent"


async def test_a_task_whose_calls_spend_the_budget_makes_no_further_one() -> None:
    store = KeepingStore()
    store.money = Decimal("-0.01")

    await run(paid("0.5"), store, [calls(call("a", "roll_dice")), answer()])

    assert len(store.ledger) == 1
    assert store.events[-1].data["error"]["code"] == "budget_spent"


async def test_what_is_left_is_asked_after_what_was_spent_is_written() -> None:
    seen: list[int] = []

    class Asked(KeepingStore):
        async def left(self, claim: Claim) -> Decimal | None:
            seen.append(len(self.ledger))
            return Decimal(1)

    await run(paid("0.5"), Asked(), [calls(call("a", "roll_dice")), answer()])

    assert seen == [1]


async def test_what_is_left_is_asked_of_a_ledger_with_every_call_in_it() -> None:
    """A call that is tried again has no step of its own, whose beginning would be written first."""

    class Asked(KeepingStore):
        async def left(self, claim: Claim) -> Decimal | None:
            return Decimal(len(self.ledger))

    log = TaskLog(claim(), Asked(), on_lost=lambda: None)
    for number in (1, 2):
        log.enter(LedgerEntry(0, "m/m", "reply", "error", reported=True))
        assert await log.left() == number


async def test_what_is_left_stands_while_postgres_is_away() -> None:
    books = Books(StoreUnavailable("away"), Decimal(0))
    meter = Meter(paid("1"), books, TARIFF)
    stream_fn = meter.guarded(meter.counted(ScriptedModel([answer(), answer(), answer()])))

    await complete(MODEL, CONTEXT, stream_fn=stream_fn)
    await complete(MODEL, CONTEXT, stream_fn=stream_fn)
    with pytest.raises(ProviderError, match="budget for this is spent"):
        await complete(MODEL, CONTEXT, stream_fn=stream_fn)

    assert (len(books.entries), meter.refused) == (2, True)


async def test_calls_side_by_side_are_not_all_paid_from_the_last_cent() -> None:
    go = asyncio.Event()

    async def slow(stream: Any, request: Any) -> None:
        await go.wait()
        stream.done(answer())

    books = Books(*([Decimal("1.5")] * 5))
    meter = Meter(paid("1.5"), books, TARIFF)  # a call is taken to cost 1
    stream_fn = meter.guarded(meter.counted(ScriptedModel([], otherwise=slow)))
    asked = [asyncio.create_task(complete(MODEL, CONTEXT, stream_fn=stream_fn)) for _ in range(5)]
    await until(lambda: sum(one.done() for one in asked) >= 3)
    refused = [one for one in asked if one.done()]
    go.set()
    await within(asyncio.wait(asked))

    assert [isinstance(one.exception(), ProviderError) for one in refused] == [True] * 3
    assert [one.exception() for one in asked if one not in refused] == [None] * 2


async def test_a_refusal_says_nothing_against_a_model() -> None:
    router = ModelRouter(trip_after=1)
    router.register("only", MODEL)
    meter = Meter(paid("0"), Books(), TARIFF)
    stream_fn = router.stream_fn(meter.guarded(meter.counted(ScriptedModel([]))))

    await events_of(stream_fn)
    await events_of(router.stream_fn(ScriptedModel([answer()])))

    other = Model("other", "test")
    router.register("other", other)
    assert router.candidates()[0] is MODEL


# What comes too late


async def test_a_call_that_ends_after_its_attempt_was_lost_is_not_lost() -> None:
    late: list[LedgerEntry] = []
    of = claim()
    log = TaskLog(
        of, KeepingStore(), on_lost=lambda: None, on_late=lambda _, entries: late.extend(entries)
    )
    entry = LedgerEntry(0, "m/m", "reply", "done", reported=True)

    log.enter(entry)
    log.lose("frozen")
    log.enter(entry)
    await log.close()

    assert sorted(one.no for one in late) == [0, 1]


@pytest.mark.parametrize("ends", [False, True])
async def test_calls_of_a_write_that_failed_come_late(ends: bool) -> None:
    late: list[LedgerEntry] = []
    store = KeepingStore()
    log = TaskLog(
        claim(), store, on_lost=lambda: None, on_late=lambda _, entries: late.extend(entries)
    )
    store.failure = StoreUnavailable("away")
    log.enter(LedgerEntry(0, "m/m", "reply", "done", reported=True))

    with pytest.raises(AttemptLostError, match="away"):
        await (log.end("completed", data={"result": {}}) if ends else log.flush())

    assert [one.no for one in late] == [0]
