"""The package litellm, imported once and without what nobody here uses.

It is made for gateways, which price and log each call. A worker that leaves that out has 60 MB more
for sessions, and one that has rehearsed a call does not hold up its loop for half a second at the
first one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from agent_core.assembly import BROKEN_OFF, UNSPECIFIED
from agent_core.later_names import LaterNames

logger = logging.getLogger(__name__)

_OPENAI = LaterNames("openai.resources", "openai.types")

_NO_LIMIT = "1000000"
"""At 0 it would leave the limit to aiohttp, whose own is 100 connections."""


@cache
def litellm() -> Any:
    """Return the package; the first call imports it, which takes about three seconds of CPU."""
    # These must be set before the import. Without the first it fetches a table of prices; the
    # others are how many connections it keeps: how many calls run at once is for limiters to say.
    # In its other mode it would take settings from a `.env` in any folder above its own.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    os.environ.setdefault("AIOHTTP_CONNECTOR_LIMIT", _NO_LIMIT)
    os.environ.setdefault("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", _NO_LIMIT)
    # OpenAI's package, which litellm calls, is three times what is needed of it.
    if _OPENAI not in sys.meta_path:
        sys.meta_path.insert(0, _OPENAI)
    import litellm as package  # noqa: PLC0415 - seconds of CPU

    package.telemetry = False
    package.suppress_debug_info = True
    # Providers differ in what they accept; what one does not know is left out.
    package.drop_params = True
    # At DEBUG litellm logs requests with their headers.
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _drop_what_is_not_used(package)
    return package


@cache
def rehearse() -> None:
    """Import litellm, and make a call that goes nowhere: what it builds at its first one is there.

    Not in a thread whose event loop runs.
    """
    package = litellm()
    try:
        asyncio.run(_rehearsal(package))
    except Exception:
        # Real calls pay for it then; they are not the worse for it.
        logger.warning("litellm could not rehearse a call", exc_info=True)


class _LaterEncoding:
    """The tokenizer that litellm hands to each of its providers, read when one of them uses it."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        tokenizer = self._package.rust_bridge.tokenizer
        return getattr(tokenizer.get_encoding("cl100k_base"), name)


def _drop_what_is_not_used(package: Any) -> None:
    # Two threads may do it at once: a worker's first call comes while it is still preloading.
    # What a call cost is for the model's own prices to say. To know it litellm would count tokens
    # at the start of each stream, where there are none yet, and read its tokenizer (40 MB) for it.
    package.response_cost_calculator = _unpriced
    package.main.encoding = _LaterEncoding(package)
    # At the end of a stream it would count the tokens that the provider reported nothing of (and
    # those of all thinking), and give them as if it had. What is missing is 0 here, as it is on the
    # direct way, and the ledger estimates it.
    package.litellm_core_utils.streaming_chunk_builder_utils.token_counter = _uncounted
    # The vocabulary of Claude's tokenizer, twice; who counts with it reads it.
    package.utils.json_data = None
    vars(package.utils).pop("claude_json_str", None)
    read_when_asked_for = package._lazy_imports.get_lazy_import_registry()  # noqa: SLF001 - 2 MB
    read_when_asked_for["claude_json_str"] = _vocabulary_of_claude
    # The table of models as it was read, beside the one that is used.
    kept = package.litellm_core_utils.get_model_cost_map.GetModelCostMap
    kept._loaded_catalog = MappingProxyType(package.model_cost)  # noqa: SLF001 - 8 MB for nothing
    # Answers that broke off are whole ones to it. This is what it can say that comes nearest.
    reasons = package.litellm_core_utils.core_helpers._FINISH_REASON_MAP  # noqa: SLF001
    reasons.update(dict.fromkeys(BROKEN_OFF, UNSPECIFIED), model_length="length")


def _vocabulary_of_claude(_: str) -> str:
    folder = resources.files("litellm.litellm_core_utils.tokenizers")
    return folder.joinpath("anthropic_tokenizer.json").read_text("utf-8")


def _unpriced(**_: object) -> None:
    """In place of litellm's price of a call."""


def _uncounted(**_: object) -> int:
    """In place of litellm's own count of tokens."""
    return 0


async def _rehearsal(package: Any) -> None:
    # Both come with litellm.
    import httpx  # noqa: PLC0415
    import openai  # noqa: PLC0415

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=_ANSWER)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = openai.AsyncOpenAI(api_key="none", base_url="http://invalid", http_client=http)
        stream = await package.acompletion(
            model="rehearsal",
            custom_llm_provider="openai",
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            stream_options={"include_usage": True},
            api_key="none",
            client=client,
            max_retries=0,
            num_retries=0,
            _skip_mcp_handler=True,
        )
        async for _ in stream:
            pass


def _event(**fields: Any) -> str:
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "rehearsal"}
    return f"data: {json.dumps(chunk | fields)}\n\n"


_ANSWER = (
    _event(choices=[{"index": 0, "delta": {"role": "assistant", "content": "!"}}])
    + _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    + _event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    + "data: [DONE]\n\n"
)
