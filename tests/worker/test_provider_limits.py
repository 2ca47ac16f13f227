"""A provider's limits, kept by several processes over one Redis that also goes away."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from agent_core import (
    AbortedError,
    AbortSignal,
    AssistantMessage,
    LlmContext,
    Model,
    ModelCall,
    ProviderError,
    StreamDone,
    StreamError,
    StreamOptions,
    Usage,
    UserMessage,
    complete,
    limited,
)
from agent_core.http_connections import close_connections
from deploy.local.ports import free_port
from deploy.local.valkey import EmbeddedValkey
from shared.ending import end_all
from shared.model_limits import ModelLimits
from shared.redis_pool import connect_redis
from shared.settings import load_settings
from tests.waiting import PATIENCE, until, within
from tests.worker.strict_provider import StrictProvider
from worker.provider_lane import ASK_SECONDS, Lane
from worker.provider_limits import ProviderLimits

WINDOW = 1.0
SLACK = 0.4
"""For so much longer bookings count: what is on its way comes later than it was booked."""
WIDE = 3.0
"""So long that no machine stands still for it: who speaks after a silence of one window is taken
for the first whom Redis hears, and then each process keeps to a share of its own for a while."""
LONG = 60.0
"""A window that does not pass while a test works, however long the machine stands still."""
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a Redis that is away is taken for one, and not a machine that stood still."""
    monkeypatch.setattr("worker.provider_lane.ASK_SECONDS", PATIENCE)


class Fleet:
    """Limiters, each as if in a process of its own: nothing but Redis is between them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: list[tuple[ProviderLimits, Redis]] = []

    def add(self, limits: ModelLimits, window: float = WINDOW, url: str = "") -> ProviderLimits:
        settings = load_settings().model_copy(update={"redis_url": SecretStr(url or self._url)})
        redis = connect_redis(settings)
        redis.connection_pool.connection_kwargs["socket_timeout"] = PATIENCE
        made = ProviderLimits(redis, default=limits, limits={}, window=window + SLACK)
        self._made.append((made, redis))
        return made

    async def close(self) -> None:
        for limits, redis in self._made:
            await limits.aclose()
            await redis.aclose()


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    made = Fleet(redis_url)
    yield made
    await made.close()
    await close_connections()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


def call(user: str = "u", *, patience: float = 60.0, max_tokens: int = 100) -> ModelCall:
    options = StreamOptions(api_key=KEY, max_retry_delay=patience, max_tokens=max_tokens)
    return ModelCall(Model("m", "test"), user, LlmContext("", [UserMessage("hi")]), options)


def model_of(provider: StrictProvider, **options: Any) -> Model:
    return Model("m", "openai", provider.url, api="openai", retry_delay=0.05, **options)


async def ask(
    provider: StrictProvider, limits: ProviderLimits | None, user: str = "u", **options: Any
) -> bool:
    """Whether a call was answered."""
    stream = None if limits is None else limited(None, limits, user)
    context = LlmContext("", [UserMessage(user)])
    try:
        await complete(
            model_of(provider, **options), context, StreamOptions(api_key=KEY), stream_fn=stream
        )
    except ProviderError:
        return False
    return True


async def passes(limits: ProviderLimits, user: str = "u") -> float:
    """The seconds that a call without any work waited."""
    began = time.monotonic()
    async with limits.admit(call(user)):
        return time.monotonic() - began


async def until_they_know_of_each_other(made: list[ProviderLimits]) -> list[Lane]:
    """Make one call by each; their lanes."""
    for limits in made:
        await passes(limits)
    lanes = [lane for limits in made for lane in limits._lanes.values()]
    await until(lambda: all(lane._processes == len(made) for lane in lanes))
    return lanes


# -- one limit for all --------------------------------------------------------------------------


@pytest.fixture
def set_out(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """By user, when their process began to ask for the call that was let in last.

    It was booked after that, and before it came to the provider, wherever in between the machine
    stood still.
    """
    noted: dict[str, float] = {}

    class Noted(Lane):
        _began = 0.0

        async def _turn_round(self) -> float:
            self._began = time.monotonic()
            return await super()._turn_round()

        def _let_in(self, waiter: Any, *args: Any, **options: Any) -> None:
            noted[waiter.user] = self._began
            super()._let_in(waiter, *args, **options)

    monkeypatch.setattr("worker.provider_limits.Lane", Noted)
    return noted


@pytest.mark.parametrize("processes", [1, 3])
async def test_processes_together_ask_no_more_than_the_provider_allows(
    fleet: Fleet, set_out: dict[str, float], processes: int
) -> None:
    calls = 60
    async with StrictProvider(requests=20, window=LONG).running() as provider:
        unlimited = await asyncio.gather(
            *(ask(provider, None, max_attempts=1) for _ in range(calls))
        )
        refused_without = provider.refused

    async with StrictProvider(requests=20, window=WIDE, set_out=set_out).running() as provider:
        made = [fleet.add(ModelLimits(requests=20), WIDE) for _ in range(processes)]
        began = time.monotonic()
        answered = await within(
            asyncio.gather(
                *(ask(provider, made[number % processes], f"u{number}") for number in range(calls))
            )
        )
        took = time.monotonic() - began

    assert (refused_without, sum(unlimited)) == (40, 20)
    assert provider.refused == 0
    assert all(answered)
    assert len(set_out) == calls
    # 20 at once, 20 after one window, 20 after another.
    assert took > 2 * WIDE


async def test_calls_under_way_are_counted_over_all_processes(fleet: Fleet) -> None:
    async with StrictProvider(seconds=0.05).running() as provider:
        made = [fleet.add(ModelLimits(calls=4), window=LONG) for _ in range(3)]
        answered = await asyncio.gather(*(ask(provider, made[number % 3]) for number in range(30)))

    assert all(answered)
    assert provider.peak <= 4


async def test_tokens_are_booked_as_expected_and_counted_as_used(fleet: Fleet) -> None:
    one, other = (fleet.add(ModelLimits(tokens=1000)) for _ in range(2))
    done = StreamDone("stop", AssistantMessage([], usage=Usage(total_tokens=900)))
    began = time.monotonic()
    async with one.admit(call()) as report:
        report(done)

    def all_is_told() -> bool:
        """What the window has left behind need not be told any more, and is forgotten."""
        (lane,) = one._lanes.values()
        return all(booking.told == (900, "over") for booking in lane._bookings.values())

    await until(all_is_told)
    await within(passes(other))

    assert time.monotonic() - began > WINDOW


async def test_tokens_are_summed_up_for_all(fleet: Fleet, redis: Redis) -> None:
    limits = fleet.add(ModelLimits(tokens=1000), window=LONG)
    for tokens in (900, 50):
        async with limits.admit(call(max_tokens=50)) as report:
            used = Usage(total_tokens=tokens)
            report(StreamDone("stop", AssistantMessage([], usage=used)))

    async def all_is_told() -> bool:
        return [await redis.hget(key, "sum") for key in await redis.keys("*:tokens")] == [b"950"]

    await until(all_is_told)


async def test_expected_tokens_keep_others_out_until_less_was_used(fleet: Fleet) -> None:
    one, other = (fleet.add(ModelLimits(tokens=1000), window=LONG) for _ in range(2))
    report_of: Any
    async with one.admit(call(max_tokens=700)) as report_of:
        second = asyncio.create_task(passes(other))
        async with other.admit(call(max_tokens=100)):
            pass
        third = asyncio.create_task(within(_hold(other, 700)))
        await asyncio.sleep(0.05)
        assert not third.done()
        report_of(StreamDone("stop", AssistantMessage([], usage=Usage(total_tokens=10))))
    assert await within(second) < LONG / 2
    await within(third)


async def _hold(limits: ProviderLimits, tokens: int) -> None:
    async with limits.admit(call(max_tokens=tokens)):
        pass


async def test_a_call_larger_than_the_limit_is_made_when_nothing_else_is(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(tokens=50))

    began = time.monotonic()
    await within(passes(limits))
    await within(passes(limits))
    assert time.monotonic() - began > WINDOW


# -- the provider's own word --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [ModelLimits(), ModelLimits(requests=100)])
async def test_one_refusal_holds_all_processes_back(
    fleet: Fleet, redis: Redis, limit: ModelLimits
) -> None:
    async with StrictProvider().running() as provider:
        one, other = (fleet.add(limit, window=LONG) for _ in range(2))
        assert await ask(provider, other)
        provider.refuse_for = 30.0
        began = time.monotonic()
        first = asyncio.create_task(ask(provider, one))

        async def is_told() -> bool:
            """A process without limits hears of it in a while, one that has some will ask."""
            (lane,) = other._lanes.values()
            return lane._closed_until > began or bool(limit.any and await redis.keys("*:shut"))

        await until(is_told)
        (shut,) = await redis.keys("*:shut")
        assert 0 < await redis.pttl(shut) <= 30_000
        held_back = [asyncio.create_task(ask(provider, limits)) for limits in (one, other)]
        # It ends early, but not before it ends.
        shortened = time.monotonic()
        assert await redis.pexpire(shut, 500)
        assert all([await within(task) for task in held_back])
        assert time.monotonic() - shortened > 0.49
        await end_all([first])

    assert (provider.refused, provider.answered) == (1, 3)


async def test_refusals_alone_keep_processes_near_the_limit(fleet: Fleet) -> None:
    calls = 60
    limit: dict[str, Any] = {"requests": 5, "window": 0.25}
    async with StrictProvider(**limit, crowd=calls).running() as provider:
        without = await asyncio.gather(*(ask(provider, None) for _ in range(calls)))
        refused_without = provider.refused
    async with StrictProvider(**limit).running() as provider:
        made = [fleet.add(ModelLimits()) for _ in range(3)]
        answered = await asyncio.gather(
            *(ask(provider, made[number % 3]) for number in range(calls))
        )

    print(f"refused {refused_without} without, {provider.refused} with")
    # Each is given up after three tries.
    assert (refused_without, sum(without)) == (55 + 50 + 45, 15)
    assert all(answered)
    assert provider.refused / sum(answered) < refused_without / sum(without) / 3


async def test_who_would_have_to_wait_too_long_is_told_at_once(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(requests=1))
    waiting = []
    async with limits.admit(call()) as report:
        waiting = [asyncio.create_task(passes(limits)) for _ in range(3)]
        await asyncio.sleep(0)
        failed = AssistantMessage([], stop_reason="error", error_message="429")
        report(StreamError("error", failed, 429, 3600.0, retryable=True))
    for one in waiting:
        with pytest.raises(ProviderError, match=r"asked for a wait of 3[56]\d\d seconds") as caught:
            await within(one)
        assert caught.value.status == 429
    with pytest.raises(ProviderError):
        await within(passes(limits))


@pytest.mark.parametrize("seconds", [1.8e9, math.inf])
async def test_no_word_of_a_provider_holds_calls_back_for_ever(
    fleet: Fleet, redis: Redis, seconds: float
) -> None:
    limits = fleet.add(ModelLimits())
    failed = AssistantMessage([], stop_reason="error", error_message="429")
    async with limits.admit(call()) as report:
        report(StreamError("error", failed, 429, seconds, retryable=True))

    async def is_told() -> bool:
        return bool(await redis.keys("*:shut"))

    await until(is_told)
    (shut,) = await redis.keys("*:shut")
    assert 0 < await redis.pttl(shut) <= 3_600_000
    with pytest.raises(ProviderError, match=r"asked for a wait of 3[56]\d\d seconds"):
        await within(passes(limits))


async def test_a_refusal_passes_over_who_was_cancelled_at_the_same_moment(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(requests=1))
    async with limits.admit(call()) as report:
        gone, stays = (asyncio.create_task(passes(limits, user)) for user in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()  # it has yet to hear of that
        failed = AssistantMessage([], stop_reason="error", error_message="429")
        report(StreamError("error", failed, 429, 3600.0, retryable=True))
    with pytest.raises(ProviderError, match="asked for a wait"):
        await within(stays)
    with pytest.raises(asyncio.CancelledError):
        await within(gone)


async def test_a_refusal_without_a_time_holds_back_longer_each_time(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits())
    failed = AssistantMessage([], stop_reason="error", error_message="429")
    waits = []
    refused_at = time.monotonic()
    with capture_logs() as logs:
        async with asyncio.timeout(0), limits.admit(call()) as report:  # without waiting at all
            report(StreamError("error", failed, 429, retryable=True))
        for refusal in (True, False):
            async with limits.admit(call()) as report:
                waits.append(time.monotonic() - refused_at)
                refused_at = time.monotonic()
                if refusal:
                    report(StreamError("error", failed, 429, retryable=True))
    assert [entry["seconds"] for entry in logs] == [1.0, 2.0]
    assert waits[0] >= 1.0
    assert waits[1] >= 2.0


async def test_an_account_without_money_holds_nobody_back(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(requests=100), window=LONG)
    failed = AssistantMessage([], stop_reason="error", error_message="insufficient_quota")
    for retry_after in (None, 3600.0):
        with capture_logs() as logs:
            async with limits.admit(call()) as report:
                report(StreamError("error", failed, 429, retry_after))

        assert logs == []
        assert await within(passes(limits)) < LONG / 2


# -- whose turn it is ---------------------------------------------------------------------------


async def test_a_quiet_user_does_not_wait_behind_a_noisy_one(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(calls=1))
    order: list[str] = []

    async def work(user: str) -> None:
        async with limits.admit(call(user)):
            order.append(user)

    async with limits.admit(call("noisy")):
        tasks = [asyncio.create_task(work("noisy")) for _ in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(work(user)) for user in ("one", "two", "one")]
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)

    assert order == ["noisy", "one", "two", "noisy", "one", "noisy", "noisy", "noisy"]


async def test_who_gives_up_leaves_no_booking_behind(fleet: Fleet, redis: Redis) -> None:
    limits = fleet.add(ModelLimits(requests=5, calls=1), window=LONG)
    async with limits.admit(call()):
        waiting = [asyncio.create_task(passes(limits)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await end_all(waiting)
    # And at each moment of asking.
    for steps in range(12):
        one = asyncio.create_task(passes(limits))
        for _ in range(steps):
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.wait({one})
        if not one.cancelled():
            break
    made = sum(not one.cancelled() for one in [*waiting, one])
    for _ in range(4 - made):
        assert await within(passes(limits)) < LONG / 2
    await limits.aclose()

    async def counted(part: str) -> int:
        (key,) = [key async for key in redis.scan_iter(f"fireside:limit:*:{part}")]
        return int(await redis.zcard(key))

    assert await counted("calls") == 5


async def test_an_abort_ends_the_waiting(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(calls=1))
    signal = AbortSignal()
    async with StrictProvider().running() as provider, limits.admit(call()):
        stream = limited(None, limits, "u")
        options = StreamOptions(api_key=KEY, signal=signal)
        # Not the call's lane: it has another base URL, so hold that one as well.
        async with AsyncExitStack() as held:
            held_call = ModelCall(model_of(provider), "u", LlmContext(), options)
            await held.enter_async_context(limits.admit(held_call))
            asking = asyncio.create_task(
                complete(model_of(provider), LlmContext(), options, stream_fn=stream)
            )
            await asyncio.sleep(0.05)
            signal.set()
            with pytest.raises(AbortedError):
                await within(asking)
    assert provider.answered == 0


# -- Redis --------------------------------------------------------------------------------------


async def test_no_key_and_nothing_that_lasts_is_in_redis(fleet: Fleet, redis: Redis) -> None:
    limits = fleet.add(ModelLimits(requests=5, tokens=5000, calls=5), window=LONG)
    async with limits.admit(call()) as report:
        failed = AssistantMessage([], stop_reason="error", error_message="429")
        report(StreamError("error", failed, 429, LONG, retryable=True))
        keys: list[bytes] = []

        async def all_is_told() -> bool:
            keys[:] = [key async for key in redis.scan_iter("*")]
            return any(key.endswith(b":shut") for key in keys)

        await until(all_is_told)
        assert sorted(key.rpartition(b":")[2] for key in keys) == [
            *(b"calls", b"open", b"seen", b"shut", b"tokens")
        ]
        for key in keys:
            assert key.startswith(b"fireside:limit:{test/m:")
            assert KEY.encode() not in key
            longest = LONG if key.endswith(b":shut") else 2 * (LONG + SLACK)
            assert 0 < await redis.pttl(key) <= longest * 1000


async def test_a_redis_that_was_wiped_is_told_what_was_booked(fleet: Fleet, redis: Redis) -> None:
    made = [fleet.add(ModelLimits(requests=10), window=2.0) for _ in range(2)]
    began = time.monotonic()
    for number in range(10):
        await within(passes(made[number % 2]))
    blocked = [asyncio.create_task(passes(limits)) for limits in made]
    await asyncio.sleep(0.1)

    await redis.flushall()

    await asyncio.wait(blocked, return_when=asyncio.FIRST_COMPLETED)
    assert time.monotonic() - began > 2.0, "what was booked before counts"
    await within(asyncio.gather(*blocked))


async def test_what_a_process_makes_before_all_is_told_is_booked(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what they make by themselves and what is granted next would be more than the limit."""
    monkeypatch.setattr("worker.fleet_limits._GRACE_SECONDS", LONG)
    made = [fleet.add(ModelLimits(requests=20), window=LONG) for _ in range(2)]
    lane, _ = await until_they_know_of_each_other(made)
    await redis.flushall()

    async with asyncio.timeout(PATIENCE), made[0].admit(call()):
        assert [booking.told for booking in lane._bookings.values()] == [(0, "over"), (0, "open")]


async def test_without_redis_each_process_keeps_to_its_part(
    fleet: Fleet, redis: Redis, valkey_server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.provider_lane._AWAY_SECONDS", 0.2)
    # Time for both to say what they know, before either is granted anything.
    monkeypatch.setattr("worker.fleet_limits._GRACE_SECONDS", LONG)
    made = [fleet.add(ModelLimits(requests=20), window=LONG) for _ in range(2)]
    lanes = await until_they_know_of_each_other(made)
    waiting = []
    try:
        with capture_logs() as logs:
            await asyncio.to_thread(valkey_server.kill)
            for limits in made:
                for _ in range(9):
                    assert await within(passes(limits)) < LONG / 2
            waiting = [asyncio.create_task(passes(limits)) for limits in made]
            for _ in range(2):  # the second time they have asked with those who wait
                asked = [lane._away_until for lane in lanes]
                await until(
                    lambda before=asked: all(  # type: ignore[misc]
                        lane._away_until > at for lane, at in zip(lanes, before, strict=True)
                    )
                )
            assert not any(one.done() for one in waiting)
        told = [e["event"] for e in logs if e["log_level"] == "warning"]
        assert len(told) == 2, "one line for each process"
        assert all("parts" in entry for entry in logs)
    finally:
        await asyncio.to_thread(valkey_server.start)

    async def booked() -> bool:
        return sum([int(await redis.zcard(key)) async for key in redis.scan_iter("*:calls")]) == 20

    await until(booked)
    assert not any(one.done() for one in waiting)
    await end_all(waiting)


async def test_a_refusal_that_is_over_is_not_told_to_a_redis_that_comes_back(
    fleet: Fleet, redis: Redis, valkey_server: EmbeddedValkey
) -> None:
    limits = fleet.add(ModelLimits(requests=100), window=LONG)
    failed = AssistantMessage([], stop_reason="error", error_message="429")
    try:
        await asyncio.to_thread(valkey_server.kill)
        async with limits.admit(call()) as report:
            report(StreamError("error", failed, 429, 2.0, retryable=True))
        assert await within(passes(limits)) > 1.5
    finally:
        await asyncio.to_thread(valkey_server.start)

    async def is_told() -> bool:
        return bool(await redis.keys("*:seen"))

    await until(is_told)
    assert await redis.keys("*:shut") == []


async def test_a_redis_that_never_was_there_stops_nobody(fleet: Fleet) -> None:
    limits = fleet.add(ModelLimits(requests=3), url=f"redis://127.0.0.1:{free_port()}/0")

    began = time.monotonic()
    for _ in range(3):
        await within(passes(limits))
    await within(passes(limits))
    assert time.monotonic() - began > WINDOW


async def test_a_redis_that_hangs_is_not_waited_for(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.provider_lane.ASK_SECONDS", ASK_SECONDS)
    limits = fleet.add(ModelLimits(requests=50), window=LONG)
    await passes(limits)
    await redis.client_pause(120_000, all=False)  # of what may write, so of what we ask
    try:
        for _ in range(21):
            assert await within(passes(limits)) < PATIENCE / 2
    finally:
        await redis.client_unpause()
