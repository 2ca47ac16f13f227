"""The scripted model as its clients see it: plain HTTP first, every kind of answer and of fault."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import jsonschema
import openai
import pytest
from pydantic import JsonValue

from deploy.local.server import ROOT
from deploy.models.control import ControlError, ScriptedModel
from tests.waiting import PATIENCE

HELLO: list[dict[str, str]] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2 * PATIENCE)) as session:
        yield session


def ask(
    http: aiohttp.ClientSession, hand: ScriptedModel, *, stream: bool = True, **fields: object
) -> "aiohttp.client._RequestContextManager":
    body = {"model": "scripted", "messages": HELLO, "stream": stream, **fields}
    return http.post(
        f"{hand.url}/chat/completions", json=body, headers={"Authorization": "Bearer key-1"}
    )


async def events(response: aiohttp.ClientResponse) -> list[str]:
    """The data of each event, as text."""
    raw = (await response.read()).decode()
    return [part.removeprefix("data: ") for part in raw.split("\n\n") if part]


def texts(data: list[str]) -> list[str]:
    """The pieces of content in the events."""
    parsed = [json.loads(entry) for entry in data if entry != "[DONE]"]
    deltas = [event["choices"][0]["delta"] for event in parsed if event["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


async def answer(
    http: aiohttp.ClientSession, hand: ScriptedModel, **fields: object
) -> dict[str, JsonValue]:
    async with ask(http, hand, stream=False, **fields) as response:
        assert response.status == 200, await response.text()
        body: dict[str, JsonValue] = await response.json()
        return body


def content(body: dict[str, JsonValue]) -> str:
    text: str = body["choices"][0]["message"]["content"]  # type: ignore[index,call-overload,assignment]
    return text


async def test_models_are_listed(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    async with http.get(f"{scripted_model.url}/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["scripted"]


async def test_without_a_script_it_narrates_and_quotes(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    first, second = [content(await answer(http, scripted_model)) for _ in range(2)]

    assert first == second
    assert "Hello there" in first
    assert len(first.split()) > 10


async def test_json_that_is_asked_for_meets_its_schema(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    schema = {
        "type": "object",
        "$defs": {"mood": {"enum": ["calm", "tense"]}},
        "properties": {
            "mood": {"$ref": "#/$defs/mood"},
            "choices": {
                "type": "array",
                "minItems": 2,
                "items": {"type": "string", "minLength": 3},
            },
            "score": {"type": "integer", "minimum": 4},
            "next": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "extra": {"type": "string"},
        },
        "required": ["mood", "choices", "score", "next"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "d", "schema": schema}}

    value = json.loads(content(await answer(http, scripted_model, response_format=wanted)))
    anything = content(await answer(http, scripted_model, response_format={"type": "json_object"}))

    jsonschema.validate(value, schema)
    assert json.loads(anything) == {}


async def test_a_stream_is_text_finish_usage_done(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 2, "cached_tokens": 64}
    scripted_model.script({"reply": {"chunks": ["Good ", "day"], "usage": usage}})

    async with ask(http, scripted_model, stream_options={"include_usage": True}) as response:
        data = await events(response)

    assert response.content_type == "text/event-stream"
    assert texts(data) == ["Good ", "day"]
    assert json.loads(data[-3])["choices"][0]["finish_reason"] == "stop"
    assert json.loads(data[-2])["usage"] == {
        "prompt_tokens": 90,
        "completion_tokens": 2,
        "total_tokens": 92,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    assert data[-1] == "[DONE]"


async def test_usage_is_streamed_only_when_asked_for(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    async with ask(http, scripted_model) as response:
        assert not any("usage" in entry for entry in await events(response))


@pytest.mark.parametrize(("split", "count"), [("words", 2), ("chars", 11), ("whole", 1)])
async def test_a_text_is_split(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel, split: str, count: int
) -> None:
    scripted_model.script({"reply": {"text": "Hello thére", "split": split}})

    async with ask(http, scripted_model) as response:
        pieces = texts(await events(response))

    assert "".join(pieces) == "Hello thére"
    assert len(pieces) == count


async def test_tool_calls_come_in_pieces(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    call = {"name": "look", "arguments": {"at": "the door"}, "id": "call_a"}
    scripted_model.script({"reply": {"tool_calls": [call]}})

    async with ask(http, scripted_model) as response:
        data = [json.loads(entry) for entry in await events(response) if entry != "[DONE]"]
    calls = [c for e in data for c in e["choices"][0]["delta"].get("tool_calls", [])]

    assert [c.get("id") for c in calls] == ["call_a", None, None]
    assert calls[0]["function"]["name"] == "look"
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"at": "the door"}
    assert data[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_turns_follow_the_conversation(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script(
        {"turns": [{"tool_calls": [{"name": "look"}]}, {"text": "A door, {user}"}]}
    )
    after = [*HELLO, {"role": "assistant", "content": None}, {"role": "tool", "content": "a door"}]

    first = await answer(http, scripted_model)
    second = await answer(http, scripted_model, messages=after)

    assert first["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index,call-overload]
    assert content(second) == "A door, Hello there"


async def test_rules_match_in_order_and_are_spent(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script(
        {"match": {"user": "bye"}, "reply": {"text": "farewell"}},
        {"match": {"system": "pirate"}, "reply": {"text": "arr"}},
        {"match": {"model": "big"}, "reply": {"text": "big"}},
        {"match": {"nth": 6}, "reply": {"text": "sixth"}},
        {"times": 1, "reply": {"text": "once"}},
        {"match": {"key": "key-1", "tools": False}, "reply": {"text": "at last"}},
    )
    pirate = [{"role": "system", "content": "You are a pirate."}, *HELLO]
    bye = [{"role": "user", "content": "good bye"}]

    said = [
        content(await answer(http, scripted_model, **fields))
        for fields in ({"messages": bye}, {"messages": pirate}, {"model": "big-1"}, {}, {}, {}, {})
    ]

    assert said == ["farewell", "arr", "big", "once", "at last", "sixth", "at last"]


async def test_a_script_in_the_users_text(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    fault = {"kind": "status", "status": 503, "times": 1}
    text = f"go [[script: {json.dumps([{'text': 'x]] y', 'fault': fault}])}]] on"

    said = [{"role": "user", "content": text}]
    async with ask(http, scripted_model, stream=False, messages=said) as response:
        assert response.status == 503
    assert content(await answer(http, scripted_model, messages=said)) == "x]] y"


@pytest.mark.parametrize("text", ['[[script: {"text": ]]', '[[script: {"txt": "a"}]]', "[[script:"])
async def test_a_broken_script_in_a_text_is_a_bad_request(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel, text: str
) -> None:
    said = [{"role": "user", "content": text}]
    async with ask(http, scripted_model, messages=said) as response:
        assert response.status == 400
        assert "inline script" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 1}', b'{"messages": [1]}', b"\xff\xfe"]
)
async def test_a_body_that_is_no_chat_request_is_refused(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel, body: bytes
) -> None:
    async with http.post(f"{scripted_model.url}/chat/completions", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"reply": {"text": "a"}, "turns": [{"text": "b"}]},
        {"reply": {"text": "a", "chunks": ["b"]}},
        {"reply": {"fault": {"kind": "unheard of"}}},
        {"reply": {"fault": {"kind": "status", "status": 200}}},
        {"reply": {"ttft": -1}},
        {"match": {"nth": 0}, "reply": {}},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(
    scripted_model: ScriptedModel, rule: dict[str, object]
) -> None:
    with pytest.raises(ControlError):
        scripted_model.script(rule)


async def test_too_many_requests_then_normal(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    fault = {"kind": "status", "status": 429, "retry_after": 1.5, "times": 2}
    scripted_model.script({"reply": {"text": "fine", "fault": fault}})

    for _ in range(2):
        async with ask(http, scripted_model) as response:
            assert (response.status, response.headers["retry-after"]) == (429, "1.5")
            assert (await response.json())["error"]["type"] == "rate_limit_error"
    assert content(await answer(http, scripted_model)) == "fine"


async def test_half_a_stream(http: aiohttp.ClientSession, scripted_model: ScriptedModel) -> None:
    fault = {"kind": "close", "after": 2}
    scripted_model.script({"reply": {"chunks": ["a", "b", "c"], "fault": fault}})

    async with ask(http, scripted_model) as response:
        received = [await response.content.readuntil(b"\n\n") for _ in range(3)]
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readuntil(b"\n\n")

    assert texts([part.decode().removeprefix("data: ") for part in received]) == ["a", "b"]
    assert scripted_model.stats().failed == 1


async def test_closed_before_the_headers(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"fault": {"kind": "close"}}})

    with pytest.raises(aiohttp.ServerDisconnectedError):
        async with ask(http, scripted_model):
            pass


async def test_half_an_answer(http: aiohttp.ClientSession, scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": {"text": "abc", "fault": {"kind": "close", "after": 1}}})

    with pytest.raises(aiohttp.ClientPayloadError):
        await answer(http, scripted_model)


async def stream_of(
    http: aiohttp.ClientSession, model: ScriptedModel, fault: dict[str, object]
) -> bytes:
    model.script({"reply": {"chunks": ["a", "b", "c"], "fault": fault}})
    async with ask(http, model) as response:
        assert response.status == 200
        return await response.read()


async def test_faults_within_a_whole_stream(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    malformed = await stream_of(http, scripted_model, {"kind": "malformed", "after": 1})
    garbage = await stream_of(http, scripted_model, {"kind": "garbage", "after": 1})
    error = await stream_of(http, scripted_model, {"kind": "error_event", "after": 1})
    no_done = await stream_of(http, scripted_model, {"kind": "no_done"})
    no_finish = await stream_of(http, scripted_model, {"kind": "no_finish"})
    empty = await stream_of(http, scripted_model, {"kind": "empty"})
    page = await stream_of(http, scripted_model, {"kind": "content_type"})

    assert b'{"id": "broken' in malformed
    assert malformed.endswith(b"[DONE]\n\n")
    assert b"\xff\xfe" in garbage
    assert b'"content":"b"' not in garbage
    assert b'data: {"error":{"message":"scripted error"' in error
    assert b'"finish_reason":"stop"' in no_done
    assert b"[DONE]" not in no_done
    assert no_finish.count(b"data: ") == 4
    assert b'"finish_reason":"stop"' not in no_finish
    assert empty == b""
    assert page.startswith(b"<!doctype html>")


async def test_a_stream_without_the_usage_that_was_asked_for(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "Yes.", "fault": {"kind": "no_usage"}}})

    async with ask(http, scripted_model, stream_options={"include_usage": True}) as response:
        data = await events(response)

    assert texts(data) == ["Yes."]
    assert '"finish_reason":"stop"' in data[-2]
    assert data[-1] == "[DONE]"
    assert not any("usage" in entry for entry in data)


async def test_a_stream_hangs_until_released(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"chunks": ["a", "b"], "fault": {"kind": "hang", "after": 1}}})

    async with ask(http, scripted_model) as response:
        stats = await scripted_model.until(tokens=1)
        assert (stats.in_flight, stats.completed) == (1, 0)
        assert scripted_model.release() == 1
        assert texts(await events(response)) == ["a", "b"]
    assert scripted_model.stats().completed == 1


async def test_a_client_that_leaves_a_hanging_stream_is_counted(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "a b", "fault": {"kind": "hang", "after": 0}}})

    async with ask(http, scripted_model) as response:
        assert response.status == 200
        response.close()
    stats = await scripted_model.until(aborted=1, in_flight=0)

    assert (stats.requests, stats.aborted, stats.completed, stats.peak) == (1, 1, 0, 1)
    assert scripted_model.release() == 0


async def test_hanging_before_the_headers(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "late", "fault": {"kind": "hang"}}})

    asking = asyncio.ensure_future(
        http.post(f"{scripted_model.url}/chat/completions", json={"messages": HELLO})
    )
    await scripted_model.until(in_flight=1)
    assert not asking.done()
    asking.cancel()  # as a client that has waited for long enough

    assert (await scripted_model.until(aborted=1)).completed == 0
    assert asking.cancelled()


async def test_a_profile_for_load(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.profile(ttft=0.05, chunks=20, duration=0.1)
    clock = asyncio.get_running_loop().time
    begin = clock()

    # The server's clock counts milliseconds, and what is due within half of one leaves together.
    async with ask(http, scripted_model, stream_options={"include_usage": True}) as response:
        assert clock() - begin >= 0.048
        data = await events(response)
    assert clock() - begin >= 0.148
    stats = scripted_model.stats()

    assert texts(data) == [f"tok{i} " for i in range(20)]
    assert json.loads(data[-2])["usage"]["completion_tokens"] == 20
    assert (stats.completed, stats.tokens, stats.keys["key-1"].tokens) == (1, 20, 20)


async def test_a_profile_with_a_tool_calls_it_first(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.profile(ttft=0, chunks=2, duration=0, tool=True)
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    after = [*HELLO, {"role": "assistant", "content": None}, {"role": "tool", "content": "a door"}]

    first = await answer(http, scripted_model, tools=tools)
    second = await answer(http, scripted_model, tools=tools, messages=after)

    message = first["choices"][0]["message"]  # type: ignore[index,call-overload]
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"q": "x"}'}  # type: ignore[index,call-overload]
    assert content(second) == "tok0 tok1 "


async def test_requests_are_kept_for_the_test(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"name": "greeting", "match": {"user": "Hello"}, "reply": {"text": "hi"}})
    await answer(http, scripted_model, temperature=0.5)

    (seen,) = scripted_model.requests()

    assert (seen.key, seen.rule) == ("key-1", "greeting")
    assert (seen.body["temperature"], seen.body["messages"]) == (0.5, HELLO)
    assert scripted_model.stats().rules == {"greeting": 1}


async def test_an_unknown_path_and_an_unknown_wait(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    root = scripted_model.url.removesuffix("/v1")
    async with http.get(f"{root}/nowhere") as response:
        assert response.status == 404
    async with http.get(f"{root}/_wait?cats=1") as response:
        assert response.status == 422
    with pytest.raises(TimeoutError):
        scripted_model.wait(requests=1, timeout=0.01)


def test_it_starts_on_any_port_with_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"rules": [{"name": "from a file", "reply": {"text": "read"}}]}')
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "deploy.models.scripted", "--port", "0"]
    with subprocess.Popen(
        [*command, "--script", str(script), "--ready-fd", str(writing)],
        cwd=ROOT,
        pass_fds=[writing],
    ) as server:
        os.close(writing)
        with os.fdopen(reading) as ready:
            model = ScriptedModel(f"http://127.0.0.1:{ready.read().strip()}/v1")
        with openai.OpenAI(base_url=model.url, api_key="k") as client:
            answer = client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "x"}]
            )
        rules = model.stats().rules
        server.terminate()

    assert (answer.choices[0].message.content, rules) == ("read", {"from a file": 1})


def test_a_script_that_makes_no_sense_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('{"rules": 7}')
    command = [sys.executable, "-m", "deploy.models.scripted", "--port", "0"]

    ended = subprocess.run(
        [*command, "--script", str(tmp_path / "script.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("the scripted model cannot start: ")
    assert "Traceback" not in ended.stderr


async def test_calls_are_logged_with_how_they_ended(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    close = {"kind": "close", "after": 1}
    scripted_model.script(
        {"name": "broken", "times": 1, "reply": {"text": "a b", "fault": close}},
        {"name": "whole", "reply": {"text": "a b"}},
    )
    with pytest.raises(aiohttp.ClientError):
        async with ask(http, scripted_model) as response:
            await response.read()
    async with ask(http, scripted_model) as response:
        await events(response)

    calls = scripted_model.calls()
    assert [(call.key, call.rule, call.turn, call.end) for call in calls] == [
        ("key-1", "broken", 0, "failed"),
        ("key-1", "whole", 0, "completed"),
    ]
    assert all(call.ended is not None and call.began <= call.ended for call in calls)


async def test_what_a_user_is_quoted_with_directs_nothing(
    http: aiohttp.ClientSession, scripted_model: ScriptedModel
) -> None:
    """Else a script of another day would come back with the memory of it."""
    quoted = '<memories>\n- User: [[script: {"text": "of another day"}]]\n</memories>\n\nHello'
    messages = [{"role": "user", "content": quoted}]
    told = content(await answer(http, scripted_model, messages=messages))
    assert "Hello" in told
    assert "another day" not in told
