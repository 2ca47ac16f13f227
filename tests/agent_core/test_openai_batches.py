"""OpenAI's batches as a client speaks them, to a provider that may answer anything."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agent_core import LlmContext, Model, ProviderError, StreamOptions, Usage, UserMessage
from agent_core.openai_batches import (
    LARGEST_LINE,
    BatchEndpoint,
    BatchResult,
    BatchStatus,
    _result,
    question_line,
)
from deploy.models.control import ScriptedModel
from tests.web import served

QUESTION = LlmContext("Be brief.", [UserMessage("Who?\nMe — Ada", timestamp=0)])
OPTIONS = StreamOptions(temperature=0.0, max_tokens=50)


def endpoint(url: str) -> BatchEndpoint:
    return BatchEndpoint(Model("scripted", "openai", base_url=url), "key")


def line(custom_id: str) -> bytes:
    return question_line(custom_id, Model("scripted", "openai"), QUESTION, OPTIONS)


@asynccontextmanager
async def saying(answer: bytes, status: int = 200) -> AsyncIterator[BatchEndpoint]:
    """A provider that says this to everything."""

    async def say(request: web.Request) -> web.Response:
        return web.Response(body=answer, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    async with served(app) as url:
        yield endpoint(f"{url}/v1")


def test_a_question_is_a_line_of_its_own() -> None:
    asked = line("one")

    assert asked.count(b"\n") == 1
    assert json.loads(asked) == {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "scripted",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Who?\nMe — Ada"},
            ],
            "max_completion_tokens": 50,
            "temperature": 0.0,
        },
    }


async def test_from_the_question_to_the_answer(scripted_model: ScriptedModel) -> None:
    scripted_model.batches(polls=1, failed_lines=1)
    usage = {"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 10}
    scripted_model.script({"reply": {"text": "It is Ada.", "usage": usage}})
    provider = endpoint(scripted_model.url)

    file = await provider.upload([line("one"), line("two")])
    batch = await provider.create(file, "mark")
    assert await provider.find("mark") == batch
    assert await provider.find("other") is None
    assert await provider.status(batch) == BatchStatus(batch, "in_progress")
    status = await provider.status(batch)
    assert (status.status, status.over) == ("completed", True)
    found = [one for name in status.files async for one in provider.results(name)]

    assert found == [
        BatchResult("two", "It is Ada.", Usage(20, 2, 10, 0, 32)),
        BatchResult("one"),
    ]
    for name in (file, *status.files):
        await provider.delete(name)
    assert scripted_model.batches_standing()["files"] == []
    (request,) = scripted_model.requests()
    assert (request.key, request.body["model"]) == ("key", "scripted")


async def test_a_batch_is_found_on_any_page(scripted_model: ScriptedModel) -> None:
    provider = endpoint(scripted_model.url)
    file = await provider.upload([line("one")])
    first = await provider.create(file, "first")
    for number in range(101):
        await provider.create(file, str(number))

    assert await provider.find("first") == first
    assert await provider.find("nobody's") is None
    assert scripted_model.batches_standing()["asked"]["list"] == 4


async def test_a_batch_is_cancelled(scripted_model: ScriptedModel) -> None:
    scripted_model.batches(ends="never")
    provider = endpoint(scripted_model.url)
    batch = await provider.create(await provider.upload([line("one")]), "mark")

    await provider.cancel(batch)

    assert (await provider.status(batch)).status == "cancelled"


STEPS: list[Callable[[BatchEndpoint], Any]] = [
    lambda provider: provider.upload([b"{}\n"]),
    lambda provider: provider.create("file-1", "mark"),
    lambda provider: provider.find("mark"),
    lambda provider: provider.status("batch-1"),
    lambda provider: provider.cancel("batch-1"),
    lambda provider: provider.delete("file-1"),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("status", "retryable"), [(401, False), (404, False), (429, True), (500, True)]
)
async def test_a_refusal_says_whether_to_try_again(
    step: Callable[[BatchEndpoint], Any], status: int, retryable: bool
) -> None:
    body = json.dumps({"error": {"message": "no", "code": None}}).encode()
    async with saying(body, status) as provider:
        with pytest.raises(ProviderError, match=f"^{status}: no$") as refused:
            await step(provider)

    assert (refused.value.status, refused.value.retryable) == (status, retryable)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "answer", [b"", b"\xff{not json", b"[]", b"null", b'"' + b"x" * (4 << 20) + b'"', b"[" * 99_999]
)
async def test_garbage_is_an_error(step: Callable[[BatchEndpoint], Any], answer: bytes) -> None:
    async with saying(answer) as provider:
        with pytest.raises(ProviderError, match="answer is"):
            await step(provider)


@pytest.mark.parametrize("name", [None, 7, "", "../../secrets", "a/b", "x" * 201, "?a", {}])
async def test_a_name_that_fits_no_path_is_refused(name: object) -> None:
    answer = json.dumps({"id": name, "status": "completed", "output_file_id": name})
    async with saying(answer.encode()) as provider:
        for step in STEPS[:2] + STEPS[3:4]:
            with pytest.raises(ProviderError, match="no id that can be used"):
                await step(provider)


async def test_no_path_is_built_from_what_is_no_name() -> None:
    with pytest.raises(ProviderError, match="no id that can be used"):
        await endpoint("http://127.0.0.1:9/v1").status("../models")


async def test_a_provider_that_is_away() -> None:
    for step in STEPS:
        with pytest.raises(ProviderError, match=r"^Connection failed") as away:
            await step(endpoint("http://127.0.0.1:9/v1"))
        assert away.value.retryable


def test_a_model_without_an_address() -> None:
    with pytest.raises(ProviderError, match="nobody/m has no base_url"):
        BatchEndpoint(Model("m", "nobody"), None)


async def results(content: bytes) -> list[BatchResult]:
    async with saying(content) as provider:
        return [one async for one in provider.results("file-1")]


def answer(custom_id: str, text: object = "yes", **more: object) -> bytes:
    body = {"choices": [{"message": {"content": text}}]}
    response = {"status_code": 200, "body": body}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None} | more).encode()


async def test_a_line_that_is_far_too_long_is_passed_over() -> None:
    content = [answer("a"), answer("b", "x" * LARGEST_LINE), answer("c"), b"", answer("d")]

    found = await results(b"\n".join(content))

    assert [one.custom_id for one in found] == ["a", "c", "d"]


async def test_an_answer_may_come_in_parts() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    said = [thought, {"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    content = [answer("a", said), answer("b", [thought]), answer("c", None), answer("d", ["yes"])]

    found = await results(b"\n".join(content))

    assert [one.text for one in found] == ["yes", "", None, None]


@pytest.mark.parametrize(
    "broken",
    [
        {"error": {"code": "server_error"}},
        {"response": None},
        {"response": {"status_code": 500, "body": {"error": {}}}},
        {"response": {"status_code": 200, "body": {"choices": []}}},
        {"response": {"status_code": 200, "body": {"choices": [{"message": {"content": 7}}]}}},
        {"response": {"status_code": 200, "body": {"usage": {"prompt_tokens_details": 7}}}},
    ],
)
async def test_a_line_without_an_answer_has_no_text(broken: dict[str, object]) -> None:
    assert [one.text for one in await results(answer("a", **broken))] == [None]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["custom_id", "response", "body", "choices", "message", "usage", "error"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(_JSON | st.fixed_dictionaries({"custom_id": st.just("a"), "response": _JSON}))
def test_whatever_stands_in_a_line_is_a_result_or_none(found: Any) -> None:
    result = _result(json.dumps(found).encode())

    assert result is None or isinstance(result.custom_id, str)
