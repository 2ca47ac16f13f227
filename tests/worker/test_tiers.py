"""Tiers: which model answers a session, for how long, and what stands in for one that is away."""

from dataclasses import replace

import pytest

from agent_core import (
    AssistantMessage,
    LlmContext,
    Message,
    Model,
    StreamOptions,
    UserMessage,
    complete,
)
from agent_core.errors import ProviderError
from agent_core.streaming import StreamFn
from agent_core.testing import Reply, ScriptedModel, answer, call, calls
from shared.encoding import JsonObject
from shared.errors import SettingsError
from shared.settings import Settings
from tests.story.playing import GATE, Table, begun, ruling
from worker.agents import Resources
from worker.companion import CompanionAgent
from worker.in_process import InProcess, MemorySession
from worker.start import tiers_of
from worker.story import StoryAgent
from worker.tiers import ModelAccess, ModelTiers, Tier, tier_of

STRONG = Model("strong", "test")
CHEAP = Model("cheap", "test")
SPARE = Model("spare", "other", base_url="http://127.0.0.1:9/v1")

TIERS = ModelTiers(
    ModelAccess(STRONG, "strong-key"),
    ModelAccess(CHEAP, "cheap-key"),
    [ModelAccess(SPARE, None)],
)


def chosen(
    *history: Message,
    usual: Tier = "cheap",
    standing: str | None = None,
    may_change: bool = False,
    deep: bool = False,
    economy: bool = False,
) -> Tier:
    return tier_of(
        history,
        usual=usual,
        standing=standing,
        may_change=may_change,
        deep=deep,
        economy=economy,
    )


def test_a_session_begins_with_what_its_agent_needs() -> None:
    assert chosen() == "cheap"
    assert chosen(usual="strong") == "strong"


@pytest.mark.parametrize("standing", ["strong", "cheap"])
def test_it_keeps_its_tier_until_the_window_is_cut(standing: Tier) -> None:
    demanding = calls(call("c", "look"))
    usual: Tier = "cheap" if standing == "strong" else "strong"

    assert chosen(demanding, usual=usual, standing=standing) == standing
    assert chosen(usual=usual, standing=standing, may_change=True) == usual


def test_it_rises_with_tools_and_with_long_words() -> None:
    assert chosen(calls(call("c", "look"))) == "strong"
    assert chosen(UserMessage("word " * 80)) == "strong"
    assert chosen(UserMessage("hi"), answer("word " * 500)) == "cheap"
    assert chosen(calls(call("c", "look")), *[answer("hm")] * 12) == "cheap"


def test_who_asks_for_depth_gets_it_and_who_saves_does_not() -> None:
    assert chosen(standing="cheap", deep=True) == "strong"
    assert chosen(usual="strong", standing="strong", economy=True) == "cheap"
    assert chosen(deep=True, economy=True) == "cheap"


# -- in a session -----------------------------------------------------------------------------


def companion(*replies: Reply, tiers: ModelTiers | None = TIERS) -> Table:
    table = Table(model=ScriptedModel(replies, otherwise="Well."))
    table.session = MemorySession("companion", character={"name": "Ash", "soul": "Kind."})
    resources = Resources(STRONG, None, table.read, stream_fn=table.model, tiers=tiers)
    table.runner = InProcess({"companion": CompanionAgent(), "story": StoryAgent()}, resources)
    return table


def asked(table: Table) -> list[str]:
    return [request.model.id for request in table.model.requests]


async def test_a_session_stays_with_the_model_that_was_asked_for() -> None:
    table = companion()
    await table.done("say", text="hi")
    await table.runner.act(table.session, {"type": "say", "text": "think!", "deep": True})
    await table.done("say", text="and?")

    assert asked(table) == ["cheap", "strong", "strong"]
    notes = [one["details"]["context"] for one in table.session.messages if "details" in one]
    assert [note["tier"] for note in notes] == ["cheap", "strong", "strong"]


async def test_without_tiers_there_is_one_model_and_no_tier() -> None:
    table = companion(tiers=None)
    await table.done("say", text="hi")

    assert asked(table) == ["strong"]
    assert "tier" not in table.session.messages[0]["details"]["context"]


async def test_referee_and_judge_are_cheap_and_the_narrator_is_not() -> None:
    table = await begun(GATE)
    resources = Resources(STRONG, None, table.read, stream_fn=table.model, tiers=TIERS)
    table.runner = InProcess({"story": StoryAgent()}, resources)

    await table.say("I wish him well", ruling(1), "He nods.", "{}")

    assert asked(table) == ["cheap", "strong", "cheap"]


# -- one that is away -------------------------------------------------------------------------


def answering(*models: str) -> tuple[StreamFn, list[tuple[str, str | None]]]:
    """A provider at which only these models answer, and who was called with which key."""
    called: list[tuple[str, str | None]] = []

    async def provider(model: Model, context: LlmContext, options: StreamOptions) -> object:
        called.append((model.id, options.api_key))
        if model.id not in models:
            raise ProviderError("away", status=503)
        return await ScriptedModel([f"{model.id} here"])(model, context, options)

    return provider, called  # type: ignore[return-value]


async def told(stream: StreamFn, model: Model) -> AssistantMessage:
    return await complete(model, LlmContext("Be kind."), StreamOptions(), stream_fn=stream)


@pytest.mark.parametrize(
    ("there", "tier", "called"),
    [
        (["strong"], "strong", [("strong", "strong-key")]),
        (["spare"], "strong", [("strong", "strong-key"), ("spare", None)]),
        (
            ["cheap"],
            "strong",
            [("strong", "strong-key"), ("spare", None), ("cheap", "cheap-key")],
        ),
        (
            ["strong"],
            "cheap",
            [("cheap", "cheap-key"), ("spare", None), ("strong", "strong-key")],
        ),
    ],
)
async def test_another_model_answers_with_its_own_key(
    there: list[str], tier: Tier, called: list[tuple[str, str | None]]
) -> None:
    tiers = ModelTiers(
        ModelAccess(STRONG, "strong-key"), ModelAccess(CHEAP, "cheap-key"), [ModelAccess(SPARE)]
    )
    provider, seen = answering(*there)

    message = await told(tiers.stream_fn(provider), tiers.model(tier))

    assert message.text == f"{there[0]} here"
    assert seen == called


async def test_one_that_is_away_for_long_is_not_tried_first_any_more() -> None:
    tiers = ModelTiers(ModelAccess(STRONG), None, [ModelAccess(SPARE)])
    provider, seen = answering("spare")
    stream = tiers.stream_fn(provider)
    # As it is called for a short answer: the same model.
    brief = replace(STRONG, max_attempts=1)
    for _ in range(5):
        await told(stream, brief)

    assert [model for model, _ in seen] == ["strong", "spare"] * 3 + ["spare"] * 2


async def test_where_all_are_away_the_call_fails() -> None:
    tiers = ModelTiers(ModelAccess(STRONG), ModelAccess(CHEAP))
    provider, _ = answering()

    with pytest.raises(ProviderError, match="away"):
        await told(tiers.stream_fn(provider), STRONG)


# -- settings ---------------------------------------------------------------------------------


def settings(**given: object) -> Settings:
    base: JsonObject = {"model": "openai/big", "model_url": "http://127.0.0.1:9/v1"}
    return Settings(**{**base, "model_api_key": "big-key", **given})


def test_one_model_makes_no_tiers() -> None:
    assert tiers_of(settings()) is None


def test_a_further_model_shares_url_and_key_with_its_provider_alone() -> None:
    tiers = tiers_of(settings(model_cheap="openai/small", model_fallbacks=["xai/grok"]))
    assert tiers is not None

    assert (tiers.model("strong").name, tiers.model("cheap").name) == ("openai/big", "openai/small")
    assert tiers.model("cheap").base_url == "http://127.0.0.1:9/v1"
    other = tiers_of(settings(model_cheap="xai/grok", model_cheap_url="http://127.0.0.1:8/v1"))
    assert other is not None
    assert other.model("cheap").base_url == "http://127.0.0.1:8/v1"


@pytest.mark.parametrize("name", ["small", "/small", "openai/"])
def test_a_further_model_has_a_provider(name: str) -> None:
    with pytest.raises(SettingsError, match="FIRESIDE_MODEL_CHEAP: must be provider/model"):
        tiers_of(settings(model_cheap=name))
    with pytest.raises(SettingsError, match="FIRESIDE_MODEL_FALLBACKS"):
        tiers_of(settings(model_fallbacks=[name]))
