"""OpenAI's batches: many questions in one file, answered within a day at half the price.

For OpenAI and every server that has its `/files` and `/batches`. What a provider says is read with
care: ids go into paths, answers may be long, and any of it may be broken.
https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from agent_core.chat_format import said_in, usage_of
from agent_core.errors import ProviderError
from agent_core.http_connections import http_session, network_errors
from agent_core.messages import Usage
from agent_core.models import Model
from agent_core.openai_stream import base_url, chat_request, refused, request_headers
from agent_core.streaming import LlmContext, StreamOptions

MARK = "fireside_batch"
"""The name in a batch's metadata under which whoever made it finds it again."""

LARGEST_LINE = 1024 * 1024
"""Bytes of an answer's line; a longer one is passed over."""

_LARGEST_BODY = 4 * 1024 * 1024
_PAGE = 100
_MOST_PAGES = 20
_SECONDS = 60.0
_FILE_SECONDS = 240.0

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch has got; `over` says that its files, if there are any, are complete."""

    id: str
    status: str
    files: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _OVER


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What came of one question; without `text` the model gave no answer.

    `usage` is what the provider reported, if it did.
    """

    custom_id: str
    text: str | None = None
    usage: Usage | None = None


def question_line(
    custom_id: str, model: Model, context: LlmContext, options: StreamOptions
) -> bytes:
    """Return a line of a batch's file."""
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": chat_request(model, context, options),
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class BatchEndpoint:
    """The files and batches of one provider.

    Each method is one request, and raises ProviderError.

    Args:
        model: where it is, and what is asked there.

    Raises:
        ProviderError: the model has no address.
    """

    def __init__(self, model: Model, api_key: str | None) -> None:
        self.model = model
        self._key = api_key
        self._url = base_url(model)

    async def upload(self, lines: Sequence[bytes]) -> str:
        """Give the provider questions; the file's id there."""
        import aiohttp  # noqa: PLC0415 - heavy, and only needed for direct calls

        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field(
            "file",
            io.BytesIO(b"".join(lines)),
            filename="questions.jsonl",
            content_type="application/jsonl",
        )
        return _id(await self._json("POST", "/files", data=form, seconds=_FILE_SECONDS))

    async def create(self, input_file: str, mark: str) -> str:
        """Have a file's questions answered; the batch's id there."""
        request = {
            "input_file_id": input_file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {MARK: mark},
        }
        return _id(await self._json("POST", "/batches", data=json.dumps(request).encode()))

    async def find(self, mark: str) -> str | None:
        """Look for a batch with this mark among those that the provider has; its id there."""
        after = ""
        for _ in range(_MOST_PAGES):
            page = await self._json("GET", f"/batches?limit={_PAGE}{after}")
            batches = _objects(page.get("data"))
            for one in batches:
                metadata = one.get("metadata")
                if isinstance(metadata, dict) and metadata.get(MARK) == mark:
                    return _id(one)
            if page.get("has_more") is not True or not batches:
                break
            after = f"&after={_id(batches[-1])}"
        return None

    async def status(self, batch: str) -> BatchStatus:
        """How far a batch has got."""
        found = await self._json("GET", f"/batches/{_checked(batch)}")
        files = (found.get("output_file_id"), found.get("error_file_id"))
        return BatchStatus(
            _id(found), str(found.get("status")), tuple(_checked(one) for one in files if one)
        )

    async def results(self, file: str) -> AsyncGenerator[BatchResult, None]:
        """Give the results of an output or error file, line by line; what is none is left out."""
        async with aclosing(self._lines(f"/files/{_checked(file)}/content")) as lines:
            async for line in lines:
                result = _result(line)
                if result is not None:
                    yield result

    async def cancel(self, batch: str) -> None:
        """Ask the provider to go no further."""
        await self._json("POST", f"/batches/{_checked(batch)}/cancel")

    async def delete(self, file: str) -> None:
        """Delete a file."""
        await self._json("DELETE", f"/files/{_checked(file)}")

    async def _json(
        self, method: str, path: str, *, data: Any = None, seconds: float = _SECONDS
    ) -> dict[str, Any]:
        body = b""
        async with aclosing(self._pieces(method, path, data, seconds)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > _LARGEST_BODY:
                    raise ProviderError("The server's answer is too long")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ProviderError("The server's answer is no JSON object", retryable=True)
        return answer

    async def _lines(self, path: str) -> AsyncGenerator[bytes, None]:
        rest = bytearray()
        too_long = False
        async with aclosing(self._pieces("GET", path, None, _FILE_SECONDS)) as pieces:
            async for piece in pieces:
                *ended, last = piece.split(b"\n")
                for part in ended:
                    if not too_long and len(rest) + len(part) <= LARGEST_LINE:
                        yield bytes(rest) + part
                    rest.clear()
                    too_long = False
                too_long = too_long or len(rest) + len(last) > LARGEST_LINE
                if too_long:
                    rest.clear()
                else:
                    rest += last
        if rest:
            yield bytes(rest)

    async def _pieces(
        self, method: str, path: str, data: Any, seconds: float
    ) -> AsyncGenerator[bytes, None]:
        import aiohttp  # noqa: PLC0415 - see above

        session = await http_session()
        headers = request_headers(self.model, self._key)
        if not isinstance(data, bytes):
            del headers["Content-Type"]  # a form says its own
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10, sock_read=_SECONDS)
        try:
            async with session.request(
                method, self._url + path, data=data, headers=headers, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise await refused(response)
                async for piece in response.content.iter_any():
                    yield piece
        except network_errors() as error:
            text = str(error) or type(error).__name__
            raise ProviderError(f"Connection failed: {text}", retryable=True) from error


def _result(line: bytes) -> BatchResult | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return None
    response = found.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(body, dict):
        return BatchResult(found["custom_id"])
    usage = body.get("usage")
    answered = not found.get("error") and response.get("status_code") == 200
    return BatchResult(
        found["custom_id"],
        _text(body) if answered else None,
        _usage(usage) if isinstance(usage, dict) else None,
    )


def _text(body: Mapping[str, Any]) -> str | None:
    try:
        content = body["choices"][0]["message"]["content"]
        return None if content is None else said_in(content)[0]
    except (LookupError, TypeError, ProviderError):
        return None


def _usage(usage: Mapping[str, Any]) -> Usage | None:
    try:
        return usage_of(usage)
    except (AttributeError, TypeError):
        return None


def _id(found: Mapping[str, Any]) -> str:
    return _checked(found.get("id"))


def _checked(name: object) -> str:
    """An id as it may stand in a path."""
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ProviderError("The server's answer has no id that can be used", retryable=True)
    return name


def _objects(found: object) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
