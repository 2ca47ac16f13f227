"""The scripted model through the clients that are used in practice, unmodified."""

import importlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from deploy.models.control import ControlError, ScriptedModel

# litellm's own types, built lazily at the first answer
pytestmark = pytest.mark.filterwarnings(
    "ignore:Item .* is using the .ReadOnly. qualifier:UserWarning"
)

TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
CALL = {"tool_calls": [{"name": "look", "arguments": {"at": "door"}}]}


@pytest.fixture
async def client(scripted_model: ScriptedModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=scripted_model.url, api_key="k", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def litellm() -> Any:
    """The package, which takes seconds of CPU: only the processes that run these tests have it."""
    # Read at import: without it litellm fetches its price list from the network.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    return importlib.import_module("litellm")


async def test_openai_streams_text_and_usage(
    client: openai.AsyncOpenAI, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "A quiet room.", "usage": {"cached_tokens": 12}}})

    stream = await client.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "look"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "A quiet room."
    assert chunks[-2].choices[0].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 3
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 12


async def test_openai_calls_a_tool(
    client: openai.AsyncOpenAI, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"match": {"tools": True}, "reply": CALL})

    answer = await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "look"}], tools=[TOOL]
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": "door"})
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_openai_names_the_errors(
    client: openai.AsyncOpenAI, scripted_model: ScriptedModel
) -> None:
    for status, error in (
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (401, openai.AuthenticationError),
    ):
        scripted_model.script({"reply": {"fault": {"kind": "status", "status": status}}})
        with pytest.raises(error):
            await client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "x"}]
            )


async def test_openai_sees_half_a_stream(
    client: openai.AsyncOpenAI, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "a b c", "fault": {"kind": "close", "after": 1}}})
    stream = await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "x"}], stream=True
    )

    received = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
    with pytest.raises(Exception, match="incomplete chunked read"):
        await anext(stream)

    assert received == ["", "a "]


async def completion(litellm: Any, model: ScriptedModel, **fields: object) -> Any:
    answer = await litellm.acompletion(
        model="openai/scripted",
        api_base=model.url,
        api_key="k",
        messages=[{"role": "user", "content": "look"}],
        num_retries=0,
        max_retries=0,
        **fields,
    )
    assert isinstance(answer, litellm.ModelResponse)
    return answer


async def streamed(litellm: Any, model: ScriptedModel, **fields: object) -> str:
    answer = await litellm.acompletion(
        model="openai/scripted",
        api_base=model.url,
        api_key="k",
        messages=[{"role": "user", "content": "look"}],
        max_retries=0,
        stream=True,
        **fields,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


async def test_litellm_text_and_stream(litellm: Any, scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": {"text": "A quiet room."}})

    answer = await completion(litellm, scripted_model)

    assert answer.choices[0].message.content == "A quiet room."
    assert await streamed(litellm, scripted_model) == "A quiet room."


async def test_litellm_calls_a_tool(litellm: Any, scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": CALL})

    # Without the flag this release imports its MCP gateway for any tool, and that needs a package
    # which litellm does not depend on.
    answer = await completion(litellm, scripted_model, tools=[TOOL], _skip_mcp_handler=True)

    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": "door"})


async def test_litellm_names_the_errors(litellm: Any, scripted_model: ScriptedModel) -> None:
    for status, error in (
        (429, litellm.exceptions.RateLimitError),
        (500, litellm.exceptions.InternalServerError),
    ):
        scripted_model.script({"reply": {"fault": {"kind": "status", "status": status}}})
        with pytest.raises(error):
            await completion(litellm, scripted_model)


async def test_litellm_half_a_stream(litellm: Any, scripted_model: ScriptedModel) -> None:
    scripted_model.script({"reply": {"text": "a b c", "fault": {"kind": "close", "after": 1}}})

    with pytest.raises(litellm.exceptions.MidStreamFallbackError):
        await streamed(litellm, scripted_model)


async def test_openai_has_a_batch_answered(
    client: openai.AsyncOpenAI, scripted_model: ScriptedModel
) -> None:
    scripted_model.script({"reply": {"text": "A quiet room."}})
    scripted_model.batches(polls=1, failed_lines=1)
    body = {"model": "scripted", "messages": [{"role": "user", "content": "look"}]}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name in ("one", "two")
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()

    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    made = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"name": "ours"},
    )
    statuses = [(await client.batches.retrieve(made.id)).status for _ in range(2)]
    done = await client.batches.retrieve(made.id)

    assert [one.id async for one in client.batches.list()] == [made.id]
    assert (statuses, done.metadata) == (["in_progress", "completed"], {"name": "ours"})
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    answered = json.loads((await client.files.content(done.output_file_id)).text)
    failed = json.loads((await client.files.content(done.error_file_id)).text)
    assert answered["custom_id"] == "two"
    assert "A quiet room." in str(answered["response"]["body"]["choices"])
    assert (failed["custom_id"], failed["response"]) == ("one", None)
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(file.id)


@pytest.mark.parametrize("wrong", [{"ends": "never mind"}, {"polls": -1}, {"refuse": {"tea": 418}}])
async def test_a_broken_script_of_batches_is_refused(
    scripted_model: ScriptedModel, wrong: dict[str, object]
) -> None:
    with pytest.raises(ControlError):
        scripted_model.batches(**wrong)
