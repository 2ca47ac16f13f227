"""Which model answers, what is kept of answers, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from agent_core import (
    AssistantMessageEvent,
    FairLimiter,
    JournalError,
    LlmContext,
    MemoryCache,
    MemoryJournal,
    Model,
    ModelRouter,
    NextTurn,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
    StreamStart,
    UnknownModelError,
    Usage,
    UserMessage,
    cached,
    limited,
)
from agent_core.testing import SCRIPTED_MODEL, ScriptedModel, answer, call, calls, failure
from tests.agent_core.agents import Scripted, ok

SMALL = Model("small", "test", tools=False)
LARGE = Model("large", "test")
SPARE = Model("spare", "test")
CONTEXT = LlmContext("", [UserMessage("hi", 1)])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def router_of(clock: Clock, **settings: Any) -> ModelRouter:
    router = ModelRouter(clock=clock, **settings)
    router.register("small", SMALL, ["simple"])
    router.register("large", LARGE, ["simple", "deep"])
    router.register("spare", SPARE)
    return router


def test_a_model_is_chosen_by_task_and_by_need_of_tools() -> None:
    router = router_of(Clock())

    assert router.get_model() is SMALL
    assert router.get_model(has_tools=True) is LARGE
    assert router.get_model(task="deep") is LARGE
    assert router.get_model(task="judge") is SPARE
    assert router.candidates() == [SMALL, LARGE, SPARE]
    with pytest.raises(UnknownModelError, match="no model is registered for simple"):
        ModelRouter().get_model()


def fail(status: int | None = 503, retry_after: float | None = None) -> StreamError:
    return StreamError("error", failure("E"), status, retry_after)


def test_a_model_that_fails_again_and_again_is_left_out_for_a_time() -> None:
    clock = Clock()
    router = router_of(clock, cool_down=30, trip_after=2)

    router.report(SMALL, fail())
    assert router.get_model() is SMALL
    router.report(SMALL, fail())
    assert router.candidates() == [LARGE, SPARE, SMALL]
    clock.now = 30
    assert router.get_model() is SMALL
    router.report(SMALL, fail())
    assert router.get_model() is LARGE
    router.report(SMALL, None)
    assert router.get_model() is SMALL


def test_what_does_not_count_against_a_model() -> None:
    router = router_of(Clock(), trip_after=1)

    router.report(SMALL, fail(400))
    router.report(SMALL, StreamError("aborted", failure("stop", aborted=True)))

    assert router.get_model() is SMALL


def test_a_model_that_asks_for_a_wait_gets_it() -> None:
    clock = Clock()
    router = router_of(clock)
    router.report(SMALL, fail(429, 5.0))

    assert router.get_model() is LARGE
    clock.now = 5
    assert router.get_model() is SMALL


@pytest.mark.parametrize("seconds", [1.8e9, float("inf")])
def test_no_wait_that_a_model_asks_for_leaves_it_out_for_ever(seconds: float) -> None:
    clock = Clock()
    router = router_of(clock)
    router.report(SMALL, fail(429, seconds))
    clock.now = 3_599

    assert router.get_model() is LARGE
    clock.now = 3_600
    assert router.get_model() is SMALL


def test_a_session_keeps_its_model() -> None:
    clock = Clock()
    router = router_of(clock, trip_after=1, cool_down=10)
    router.report(SMALL, fail())
    assert router.get_model(session_id="s1") is LARGE
    clock.now = 10
    assert router.get_model(session_id="s2") is SMALL
    assert router.get_model(session_id="s1") is LARGE
    router.report(LARGE, fail())
    assert router.get_model(session_id="s1") is SMALL
    assert router.get_model(session_id="s1", task="deep") is SPARE


def test_sessions_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_core.router._MAX_SESSIONS", 2)
    router = router_of(Clock(), trip_after=1, cool_down=0.0)
    for session in ("s1", "s2", "s3"):
        router.get_model(session_id=session)

    assert len(router._chosen) == 2


def by_model(**scripts: ScriptedModel) -> StreamFn:
    async def stream_fn(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        return await scripts[model.id](model, context, options)

    return stream_fn


async def test_another_model_answers_if_the_first_one_fails() -> None:
    router = router_of(Clock(), trip_after=1)
    small, large = ScriptedModel([failure("E1")]), ScriptedModel(["fine", "still fine"])
    scripted = Scripted([], stream_fn=by_model(small=small, large=large), model_router=router)

    await scripted.agent.prompt("hi")
    await scripted.agent.prompt("again")

    assert scripted.texts() == ["hi", "fine", "again", "still fine"]
    assert len(small.requests) == 1


async def test_a_fallback_is_called_with_its_own_providers_key() -> None:
    router = ModelRouter()
    called: list[tuple[str, str | None]] = []
    for name in ("a", "b"):
        router.register(name, Model("m", name))

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        called.append((model.provider, options.api_key))
        models = {"a": ScriptedModel([failure("down")]), "b": ScriptedModel(["fine"])}
        return await models[model.provider](model, context, options)

    scripted = Scripted(
        [], stream_fn=stream, model_router=router, get_api_key=lambda name: f"key of {name}"
    )
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "fine"]
    assert called == [("a", "key of a"), ("b", "key of b")]


async def keys_called_with(models: list[Model], **settings: Any) -> list[tuple[str, str | None]]:
    """The models that a router falls back through, as all but the last fail, and their keys."""
    router = ModelRouter()
    called: list[tuple[str, str | None]] = []
    for number, model in enumerate(models):
        router.register(str(number), model)

    async def stream(
        model: Model, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        called.append((model.name, options.api_key))
        reply = "fine" if len(called) == len(models) else failure("down")
        return await ScriptedModel([reply])(model, context, options)

    scripted = Scripted([], stream_fn=stream, model_router=router, **settings)
    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "fine"]
    return called


@pytest.mark.parametrize("settings", [{}, {"get_api_key": lambda _: None}])
async def test_another_provider_does_not_get_the_key_of_the_first(settings: dict[str, Any]) -> None:
    gateway = "http://127.0.0.1:9"
    models = [Model("m", "a", gateway), Model("n", "a"), Model("m", "b"), Model("m", "c", gateway)]

    called = await keys_called_with(models, api_key="key of a", **settings)

    assert called == [("a/m", "key of a"), ("a/n", "key of a"), ("b/m", None), ("c/m", "key of a")]


async def test_a_key_stays_with_its_provider_while_that_is_left_out() -> None:
    router = ModelRouter(trip_after=1)
    first, second = Model("m", "a"), Model("m", "b")
    router.register("first", first)
    router.register("second", second)
    router.report(first, StreamError("error", failure("down")))
    model = ScriptedModel([failure("down"), "fine"])
    scripted = Scripted([], stream_fn=model, model_router=router, api_key="key of a")

    await scripted.agent.prompt("hi")

    called = [(request.model.provider, request.options.api_key) for request in model.requests]
    assert called == [("b", None), ("a", "key of a")]


async def test_a_hooks_choice_of_another_provider_does_not_get_the_key() -> None:
    scripted = Scripted(
        [calls(call("c1", "ok")), "fine"],
        ok,
        prepare_next_turn=lambda _: NextTurn(Model("m", "other")),
        api_key="key",
    )

    await scripted.agent.prompt("hi")

    assert [request.options.api_key for request in scripted.model.requests] == ["key", None]


async def test_a_routers_stream_alone_gives_another_provider_no_key() -> None:
    router = ModelRouter()
    router.register("first", Model("m", "a"))
    router.register("second", Model("m", "b"))
    model = ScriptedModel([failure("down"), "fine"])

    await final(router.stream_fn(model), Model("m", "a"), api_key="key of a")

    assert [request.options.api_key for request in model.requests] == ["key of a", None]


async def test_a_model_that_has_begun_is_not_replaced() -> None:
    half = answer("half")
    small = ScriptedModel([[StreamStart(half), StreamError("error", failure("E1", text="half"))]])
    scripted = Scripted([], stream_fn=by_model(small=small), model_router=router_of(Clock()))

    await scripted.agent.prompt("hi")

    assert scripted.texts() == ["hi", "half"]
    assert scripted.agent.state.error == "E1"


async def test_if_all_fail_the_last_failure_is_told() -> None:
    models = {name: ScriptedModel([failure(name)]) for name in ("small", "large", "spare")}
    scripted = Scripted([], stream_fn=by_model(**models), model_router=router_of(Clock()))

    await scripted.agent.prompt("hi")

    assert scripted.agent.state.error == "spare"


async def test_a_router_without_a_fitting_model_is_an_error() -> None:
    scripted = Scripted(["never"], model_router=ModelRouter())

    await scripted.agent.prompt("hi")

    assert "no model is registered" in str(scripted.agent.state.error)


async def test_a_hook_may_choose_past_the_router() -> None:
    other = Model("other", "test")
    models = by_model(large=ScriptedModel([calls(call("c1", "ok"))]), other=ScriptedModel(["fine"]))
    scripted = Scripted(
        [],
        ok,
        stream_fn=models,
        model_router=router_of(Clock()),
        prepare_next_turn=lambda _: NextTurn(other),
    )

    await scripted.agent.prompt("hi")

    assert scripted.texts()[-1] == "fine"


async def test_a_replay_does_not_mind_which_model_it_was() -> None:
    journal = MemoryJournal()
    router = router_of(Clock(), trip_after=1)
    models = by_model(small=ScriptedModel([failure("E")]), large=ScriptedModel(["fine"]))
    first = Scripted([], stream_fn=models, model_router=router, journal=journal)
    await first.agent.prompt("hi")
    again = Scripted([], stream_fn=models, model_router=router_of(Clock()), journal=journal)

    await again.agent.prompt("hi")

    assert again.texts() == ["hi", "fine"]
    assert journal.steps[0].name == "route/simple"
    other = Scripted([], stream_fn=models, model_router=router, task="deep", journal=journal)
    with pytest.raises(JournalError):
        await other.agent.prompt("hi")


# The cache


async def final(stream_fn: StreamFn, model: Model, **options: Any) -> AssistantMessageEvent:
    opened: Any = stream_fn(model, CONTEXT, StreamOptions(**options))
    events = [event async for event in opened]
    last: AssistantMessageEvent = events[-1]
    return last


async def test_the_same_request_is_answered_from_the_cache() -> None:
    clock = Clock()
    exact = replace(SCRIPTED_MODEL, temperature=0.0)
    one = answer("one")
    one.usage = Usage(5, 5, 0, 0, 10, 0.1)
    model = ScriptedModel([one, "two"])
    stream_fn = cached(model, MemoryCache(clock=clock))

    first = await final(stream_fn, exact)
    second = await final(stream_fn, exact)
    clock.now = 3_600
    third = await final(stream_fn, exact)

    assert isinstance(first, StreamDone)
    assert isinstance(second, StreamDone)
    assert isinstance(third, StreamDone)
    assert [first.message.text, second.message.text, third.message.text] == ["one", "one", "two"]
    assert (first.message.usage.cost, second.message.usage) == (0.1, Usage())


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({}, 2),
        ({"temperature": 0.7}, 2),
        ({"temperature": 0.0}, 1),
        ({"use_cache": True}, 1),
        ({"temperature": 0.0, "use_cache": False}, 2),
    ],
)
async def test_what_is_sampled_is_cached_only_if_asked(
    options: dict[str, Any], requests: int
) -> None:
    model = ScriptedModel(["one", "two"])
    stream_fn = cached(model, MemoryCache())

    for _ in range(2):
        await final(stream_fn, SCRIPTED_MODEL, **options)

    assert len(model.requests) == requests


@pytest.mark.parametrize(
    "changed",
    [
        {"base_url": "http://127.0.0.1:9"},
        {"api": "openai"},
        {"headers": {"X-Group": "b"}},
        {"extra": {"seed": 7}},
        {"images": True},
        {"reasoning": True},
        {"thinking_levels": ("high",)},
    ],
)
async def test_another_place_or_form_is_another_request(changed: dict[str, Any]) -> None:
    model = ScriptedModel(["one", "two"])
    stream_fn = cached(model, MemoryCache())

    await final(stream_fn, SCRIPTED_MODEL, use_cache=True)
    await final(stream_fn, replace(SCRIPTED_MODEL, **changed), use_cache=True)

    assert len(model.requests) == 2


async def test_a_failure_is_not_cached() -> None:
    model = ScriptedModel([failure("E"), "fine"])
    stream_fn = cached(model, MemoryCache())

    assert (await final(stream_fn, SCRIPTED_MODEL, use_cache=True)).type == "error"
    assert (await final(stream_fn, SCRIPTED_MODEL, use_cache=True)).type == "done"


class BrokenCache:
    """A cache that is away, or holds what is no answer."""

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self._kept = kept

    async def get(self, key: str) -> dict[str, Any] | None:
        if self._kept is None:
            raise OSError("the cache is away")
        return self._kept

    async def put(self, key: str, message: dict[str, Any], ttl: float) -> None:
        raise OSError("the cache is away")


@pytest.mark.parametrize("kept", [None, {}, {"role": "assistant", "content": 7}])
async def test_a_cache_that_fails_costs_no_answer(
    kept: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    stream_fn = cached(ScriptedModel(["one"]), BrokenCache(kept))

    last = await final(stream_fn, SCRIPTED_MODEL, use_cache=True)

    assert isinstance(last, StreamDone)
    assert last.message.text == "one"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "an answer was not kept in the response cache: the cache is away" in caplog.text


async def test_who_changes_an_answer_changes_no_later_one() -> None:
    stream_fn = cached(ScriptedModel([calls(call("c1", "roll", sides=6))]), MemoryCache())
    given: list[object] = []
    for _ in range(3):
        last = await final(stream_fn, SCRIPTED_MODEL, use_cache=True)
        assert isinstance(last, StreamDone)
        arguments = last.message.tool_calls[0].arguments
        given.append(dict(arguments))
        arguments["sides"] = 99

    assert given == [{"sides": 6}] * 3


async def test_who_stands_in_for_a_model_does_not_answer_for_it_later() -> None:
    router = ModelRouter()
    spare = Model("spare", "other")
    router.register("first", SCRIPTED_MODEL)
    router.register("second", spare)
    stand_in = replace(answer("from the spare"), model="spare", provider="other")
    stream_fn = cached(
        router.stream_fn(ScriptedModel([failure("down"), stand_in, "one"])), MemoryCache()
    )

    texts = []
    for _ in range(3):
        last = await final(stream_fn, SCRIPTED_MODEL, use_cache=True)
        assert isinstance(last, StreamDone)
        texts.append(last.message.text)

    assert texts == ["from the spare", "one", "one"]


async def test_a_full_cache_forgets_what_was_not_asked_for() -> None:
    cache = MemoryCache(max_entries=2)
    await cache.put("a", {"n": 1}, 10)
    await cache.put("b", {"n": 2}, 10)
    await cache.get("a")
    await cache.put("c", {"n": 3}, 10)

    assert await cache.get("b") is None
    assert await cache.get("a") == {"n": 1}


# The limiter


async def test_users_are_served_in_turn() -> None:
    limiter = FairLimiter({"test/m": 1})
    order: list[str] = []
    holding, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with limiter.slot("test/m", "noisy"):
            holding.set()
            await release.wait()

    async def work(user: str, number: int) -> None:
        async with limiter.slot("test/m", user):
            order.append(f"{user}{number}")

    tasks = [asyncio.create_task(hold())]
    await holding.wait()
    tasks += [asyncio.create_task(work("noisy", number)) for number in range(3)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(work("quiet", 0)))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks)

    assert order == ["noisy0", "quiet0", "noisy1", "noisy2"]
    assert limiter._gates == {}


async def test_models_have_limits_of_their_own() -> None:
    limiter = FairLimiter({"test/a": 1}, default=2)
    slots = [limiter.slot(f"test/{model}", "u") for model in "abb"]
    for slot in slots:
        await slot.__aenter__()
    for slot in slots:
        await slot.__aexit__(None, None, None)

    assert limiter._gates == {}


async def test_who_gives_up_waiting_loses_no_slot() -> None:
    limiter = FairLimiter(default=1)
    entered = asyncio.Event()

    async def work() -> None:
        async with limiter.slot("m", "u"):
            entered.set()

    async with limiter.slot("m", "u"):
        first, second, third = (asyncio.create_task(work()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
    # The slot is given to the second, which is cancelled before it wakes: the third gets it.
    second.cancel()
    await asyncio.wait({second, third})

    assert entered.is_set()
    assert limiter._gates == {}


async def test_the_last_one_who_gives_up_leaves_an_idle_gate() -> None:
    limiter = FairLimiter(default=1)
    async with limiter.slot("m", "u"):
        waiting = asyncio.create_task(limiter.slot("m", "v").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    assert limiter._gates == {}


async def test_a_limited_stream_holds_its_slot_to_its_end() -> None:
    limiter = FairLimiter(default=1)
    model = ScriptedModel(["one", "two"])
    scripted = Scripted([], stream_fn=limited(model, limiter, "u"))

    await asyncio.gather(scripted.agent.prompt("hi"))
    await scripted.agent.prompt("again")

    assert scripted.texts() == ["hi", "one", "again", "two"]
