"""The two ways to a model give the same answers to everything that the scripted model can do.

The direct way and litellm's are each led through the whole catalogue of replies and faults, and
have to agree on the events, the usage, the kind of failure, and on how often they asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from agent_core.completion import stream_completion
from agent_core.litellm_stream import preload
from agent_core.messages import UserMessage
from agent_core.models import Api, Model, ModelCost
from agent_core.streaming import (
    AssistantMessageEvent,
    LlmContext,
    StreamError,
    StreamOptions,
    TextDelta,
)
from deploy.models.control import ScriptedModel
from deploy.models.script import Fault, Reply, StatusFault, ToolCall, Usage
from tests.agent_core.agents import ok
from tests.agent_core.clock import Leap

pytestmark = [
    # litellm reads fields of pydantic models from instances: the warning would end its stream.
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    # litellm's own types, built lazily at the first answer
    pytest.mark.filterwarnings("ignore:Item .* is using the .ReadOnly. qualifier:UserWarning"),
]

TEXT = "A quiet room, then."
LOOK = {"name": "look", "arguments": {"at": "door"}}

REPLIES: dict[str, dict[str, Any]] = {
    "default": {},
    "text": {"text": TEXT},
    "text filled in": {"text": "You said {user} in request {n}.", "split": "whole"},
    "text of many scripts": {"text": "Ein Käse, 火と\u3000水 🔥\n\n  und Schluß "},
    "no text": {"text": ""},
    "split into characters": {"text": TEXT, "split": "chars"},
    "not split": {"text": TEXT, "split": "whole"},
    "chunks of spaces and of nothing": {"chunks": ["a", " b", "", "  ", "\n", "c"]},
    "chunks that are alike": {"chunks": ["ha"] * 30},
    "no chunks": {"chunks": []},
    "reasoning": {"text": TEXT, "reasoning": "Let me think."},
    "reasoning alone": {"text": "", "reasoning": "Let me think."},
    "a call": {"tool_calls": [LOOK]},
    "a call with an id": {"tool_calls": [LOOK | {"id": "mine"}]},
    "a call with an index": {"tool_calls": [LOOK | {"id": "mine", "index": 3}]},
    "a call without arguments": {"tool_calls": [{"name": "look"}]},
    "a call with nothing for arguments": {"tool_calls": [{"name": "look", "arguments": ""}]},
    "a call with broken arguments": {"tool_calls": [{"name": "look", "arguments": '{"at": "d'}]},
    "two calls": {"tool_calls": [LOOK, {"name": "go", "arguments": {"far": 1}}]},
    "two calls with one id": {"tool_calls": [LOOK | {"id": "a"}, LOOK | {"id": "a"}]},
    "two calls with one index": {"tool_calls": [LOOK | {"index": 0}, LOOK | {"index": 0}]},
    "text, reasoning and a call": {"text": TEXT, "reasoning": "Hm.", "tool_calls": [LOOK]},
    "cut by its length": {"text": TEXT, "finish_reason": "length"},
    "withheld by a filter": {"text": TEXT, "finish_reason": "content_filter"},
    "cut by the model's length": {"text": TEXT, "finish_reason": "model_length"},
    "broken off": {"text": TEXT, "finish_reason": "insufficient_system_resource"},
    "broken off by the network": {"text": TEXT, "finish_reason": "network_error"},
    "a reason that nobody knows": {"text": TEXT, "finish_reason": "odd"},
    "a call that ends as a text": {"tool_calls": [LOOK], "finish_reason": "stop"},
    "a text that ends as a call": {"text": TEXT, "finish_reason": "function_call"},
    "some usage": {"text": TEXT, "usage": {"prompt_tokens": 100}},
    "all usage": {
        "text": TEXT,
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "cached_tokens": 60,
            "reasoning_tokens": 3,
        },
    },
    "late": {"text": TEXT, "ttft": 0.05},
    "slow": {"text": TEXT, "delay": 0.02},
    "spread": {"text": TEXT, "duration": 0.05},
}

STATUSES = (400, 401, 403, 404, 408, 409, 413, 418, 422, 425, 429, 500, 502, 503, 504, 529)

FAULTS: dict[str, dict[str, Any]] = {
    **{f"status {status}": {"kind": "status", "status": status} for status in STATUSES},
    "status, once": {"kind": "status", "status": 429, "retry_after": 0.01, "times": 1},
    "status, twice": {"kind": "status", "status": 500, "times": 2},
    "a long wait asked for": {"kind": "status", "status": 503, "retry_after": 90},
    "an empty account": {"kind": "status", "status": 429, "code": "insufficient_quota"},
    "a prompt too long": {"kind": "status", "status": 400, "code": "context_length_exceeded"},
    "words of its own": {"kind": "status", "status": 500, "message": "gone fishing"},
    "silence": {"kind": "hang", "times": 1},
    "silence after the headers": {"kind": "hang", "after": 0, "times": 1},
    "silence within": {"kind": "hang", "after": 2},
    "closed at once": {"kind": "close"},
    "closed at once, once": {"kind": "close", "times": 1},
    "closed after the headers": {"kind": "close", "after": 0},
    "closed within": {"kind": "close", "after": 2},
    "malformed": {"kind": "malformed"},
    "malformed, once": {"kind": "malformed", "times": 1},
    "malformed within": {"kind": "malformed", "after": 2},
    "garbage": {"kind": "garbage"},
    "garbage, once": {"kind": "garbage", "times": 1},
    "garbage within": {"kind": "garbage", "after": 2},
    "an error event": {"kind": "error_event", "message": "gone fishing"},
    "an error event, once": {"kind": "error_event", "code": None, "times": 1},
    "an error event within": {"kind": "error_event", "after": 2, "code": "overloaded"},
    "a page": {"kind": "content_type"},
    "a page, once": {"kind": "content_type", "times": 1},
    "a page that says it is JSON": {"kind": "content_type", "value": "application/json"},
    "no [DONE]": {"kind": "no_done"},
    "no finish": {"kind": "no_finish"},
    "no usage": {"kind": "no_usage"},
    "nothing": {"kind": "empty"},
    "nothing, once": {"kind": "empty", "times": 1},
}

CASES = REPLIES | {name: {"text": TEXT, "fault": fault} for name, fault in FAULTS.items()}

MORE_REQUESTS: dict[str, int] = {
    # litellm sends what was refused with 422 once more, without what it takes for the reason.
    "status 422": 1,
}


@dataclass(frozen=True)
class Told:
    """What a way made of an answer; error texts apart, for litellm has words of its own."""

    events: list[dict[str, Any]]
    failure: tuple[int | None, float | None, bool] | None  # status, wait, retryable
    sent: list[dict[str, Any]]  # the requests


@pytest.fixture(scope="module", autouse=True)
def litellm() -> None:
    preload()


async def asked(
    server: ScriptedModel, api: Api, reply: dict[str, Any], leap: Leap
) -> tuple[Told, str]:
    """The answer that one way gives to a reply, and its error's text."""
    server.reset()
    server.script({"reply": reply})
    fault = reply.get("fault", {})
    hanging = fault.get("kind") == "hang"
    model = Model(
        "m",
        "local",
        base_url=server.url,
        api=api,
        cost=ModelCost(input=1.0, output=2.0, cache_read=0.5),
        retry_delay=0.001,
        # Long enough for a busy machine, except where the time is what is waited for: a server
        # that then hangs has sent all that was before in one piece.
        first_token_timeout=20.0,
        stall_timeout=0.25 if hanging else 20.0,
    )
    context = LlmContext("Be brief.", [UserMessage("hi")], [ok])
    options = StreamOptions(api_key="secret-key-1234", temperature=0.5)
    asking = asyncio.create_task(_all_of(stream_completion(model, context, options)))
    if hanging and not fault.get("after"):  # no token ever comes of the first attempt
        await server.until(in_flight=1)
        leap.seconds += 21.0
    events = await asking
    told = _said_together([_plain(event.to_dict()) for event in events])
    sent = [seen.body for seen in server.requests()]
    return Told(told, _failure(events[-1]), sent), _text(events[-1])


async def _all_of(events: AsyncIterator[AssistantMessageEvent]) -> list[AssistantMessageEvent]:
    return [event async for event in events]


def _failure(last: AssistantMessageEvent) -> tuple[int | None, float | None, bool] | None:
    if not isinstance(last, StreamError):
        return None
    return last.status, last.retry_after, last.retryable


def _calls(events: list[dict[str, Any]]) -> int:
    return [event["type"] for event in events].count("toolcall_end")


def _text(last: AssistantMessageEvent) -> str:
    return (last.error.error_message or "") if isinstance(last, StreamError) else ""


def _said_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, text that follows text as one: into how many pieces it is cut nobody promises."""
    joined: list[dict[str, Any]] = []
    for event in events:
        if joined and event["type"] == joined[-1]["type"] == "text_delta":
            joined[-1] = event | {"delta": joined[-1]["delta"] + event["delta"]}
        else:
            joined.append(event)
    return joined


def _plain(value: Any) -> Any:
    """Leave out what is another in each call: times, numbers of requests, ids that are made."""
    if isinstance(value, dict):
        kept = value.keys() - {"timestamp", "error_message"}
        return {name: _plain(value[name]) for name in kept}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(request |call_)([0-9a-f]{16}|\d+)", r"\1N", value)
    return value


def test_the_catalogue_is_whole() -> None:
    def used(name: str) -> set[object]:
        return {reply[name] for reply in CASES.values() if name in reply}

    kinds = {kind.model_fields["kind"].annotation for kind in get_args(get_args(Fault)[0])}

    assert {field for reply in CASES.values() for field in reply} == set(Reply.model_fields)
    assert {fault["kind"] for fault in FAULTS.values()} == {get_args(kind)[0] for kind in kinds}
    assert used("split") | {"words"} == set(get_args(Reply.model_fields["split"].annotation))
    assert set(CASES["all usage"]["usage"]) == set(Usage.model_fields)
    assert set(CASES["a call with an index"]["tool_calls"][0]) == set(ToolCall.model_fields)
    of_status = {field for fault in FAULTS.values() if fault["kind"] == "status" for field in fault}
    assert of_status == set(StatusFault.model_fields)


@pytest.mark.parametrize("case", CASES)
async def test_both_ways_tell_the_same(
    scripted_model: ScriptedModel, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leap = Leap(monkeypatch)
    direct, reason = await asked(scripted_model, "openai", CASES[case], leap)
    through_litellm, words = await asked(scripted_model, "litellm", CASES[case], leap)

    assert through_litellm.events == direct.events
    assert through_litellm.failure == direct.failure
    assert _calls(direct.events) == len(CASES[case].get("tool_calls", ()))
    assert len(through_litellm.sent) == len(direct.sent) + MORE_REQUESTS.get(case, 0)
    assert all(body == direct.sent[0] for body in direct.sent + through_litellm.sent)
    assert bool(words) == bool(reason)
    fault = CASES[case].get("fault", {})
    for said in (fault.get("message"), fault.get("code")):
        assert said is None or not reason or (said in reason and said in words)


@pytest.mark.parametrize("api", get_args(Api))
async def test_what_has_piled_up_of_an_answer_lets_others_have_their_turns(
    scripted_model: ScriptedModel, api: Api
) -> None:
    """Each piece of an answer is told in a turn of the loop of its own, however many have come."""
    scripted_model.script({"reply": {"chunks": [f"w{number} " for number in range(200)]}})
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    loop.call_soon(turn)
    model = Model("m", "openai", base_url=scripted_model.url, api=api)
    asked = LlmContext("", [UserMessage("hi")])
    told = [
        turns
        async for event in stream_completion(model, asked, StreamOptions(api_key="key"))
        if isinstance(event, TextDelta)
    ]

    assert told
    assert len(set(told)) == len(told)
