"""What a streamed chunk costs: `python -m bench.streaming [--json] [--out FILE]`.

CPU time of this process per chunk, in microseconds, for two pairs that give the same things: our
stream function by way of litellm beside `litellm.acompletion`, and the direct way beside the
`openai` package. All read the same answers of one scripted model in another process, by turns, so
that a disturbance of the machine falls on all of them.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from agent_core import AgentTool, LlmContext, Model, StreamDone, StreamOptions, UserMessage, tool
from agent_core.chat_format import tool_definitions
from agent_core.default_stream import stream_model
from agent_core.litellm_stream import preload
from deploy.local.model import ScriptedModelProcess
from deploy.models.control import ScriptedModel

ROOT = Path(__file__).parents[1]
REPEATS = 7
STREAMS = 10
TEXT_CHUNKS = 200
CALLS = 50
PACED_SECONDS = 2.0
KEY = "bench"
PROMPT = "Tell me of the lamp."

Ask = Callable[[], Awaitable[int]]
"""Makes one call, reads it to its end and returns how many chunks or calls of tools it had."""


@tool(effect="pure")
async def look(place: str, times: int) -> str:
    """Look at a place."""
    return place * times


@dataclass(frozen=True)
class Ways:
    """The four ways to one server, by name."""

    url: str
    client: openai.AsyncOpenAI
    tools: list[AgentTool]

    def all(self) -> dict[str, Ask]:
        return {
            "ours_litellm": lambda: self._ours("litellm"),
            "litellm": self._litellm,
            "ours_direct": lambda: self._ours("openai"),
            "openai": self._openai,
        }

    async def _ours(self, api: Any) -> int:
        model = Model("scripted", "openai", base_url=self.url, api=api, context_window=8192)
        context = LlmContext("", [UserMessage(PROMPT)], self.tools)
        chunks = 0
        message = None
        async for event in stream_model(model, context, StreamOptions(api_key=KEY)):
            if event.type in {"text_delta", "toolcall_end"}:
                chunks += 1
            if isinstance(event, StreamDone):
                message = event.message
        assert message is not None
        return chunks

    async def _litellm(self) -> int:
        import litellm  # noqa: PLC0415 - preloaded by `main`, with our settings

        # `_skip_mcp_handler` as we set it: without it each call with tools would cost more.
        stream = await litellm.acompletion(
            custom_llm_provider="openai",
            api_base=self.url,
            api_key=KEY,
            max_retries=0,
            num_retries=0,
            timeout=60.0,
            _skip_mcp_handler=True,
            **self._request(),
        )
        return await _read(stream)

    async def _openai(self) -> int:
        return await _read(await self.client.chat.completions.create(**self._request()))

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": "scripted",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 4096,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.tools:
            request["tools"] = tool_definitions(self.tools)
        return request


async def _read(stream: Any) -> int:
    """Do with OpenAI's chunks what every program must: add up the text and the arguments."""
    text: list[str] = []
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    usage = None
    async for chunk in stream:
        usage = getattr(chunk, "usage", None) or usage
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        if delta.content:
            text.append(delta.content)
        for call in delta.tool_calls or ():
            names[call.index] = names.get(call.index) or call.function.name
            arguments.setdefault(call.index, []).append(call.function.arguments or "")
    for pieces in arguments.values():
        json.loads("".join(pieces))
    assert usage is not None
    return len(text) + len(names)


@dataclass(frozen=True)
class Load:
    """What a stream holds; `paced` ones run side by side, others one after the other."""

    chunks: int
    found: int
    paced: bool = False


async def _microseconds(ask: Ask, load: Load) -> float:
    """CPU per chunk over STREAMS streams."""
    gc.collect()
    begun = time.process_time()
    if load.paced:
        found = await asyncio.gather(*(ask() for _ in range(STREAMS)))
    else:
        found = [await ask() for _ in range(STREAMS)]
    spent = time.process_time() - begun
    assert found == [load.found] * STREAMS, found
    return spent / STREAMS / load.chunks * 1e6


async def _medians(ways: dict[str, Ask], load: Load) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for ask in ways.values():  # connections, caches, imports at first use
        await ask()
    for repeat in range(REPEATS):
        names = list(ways)
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(await _microseconds(ways[name], load))
    return {name: round(statistics.median(figures), 1) for name, figures in times.items()}


def _with_ratios(medians: dict[str, float]) -> dict[str, object]:
    return {
        "microseconds_per_chunk": medians,
        "ours_litellm_to_litellm": round(medians["ours_litellm"] / medians["litellm"], 3),
        "ours_direct_to_openai": round(medians["ours_direct"] / medians["openai"], 3),
    }


async def measured(url: str) -> dict[str, object]:
    """Measure streams of text, of text that comes little by little, and of tool calls."""
    script = ScriptedModel(url)
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        script.profile(ttft=0, chunks=TEXT_CHUNKS, duration=0)
        text = Load(TEXT_CHUNKS, TEXT_CHUNKS)
        at_once = await _medians(Ways(url, client, []).all(), text)
        script.profile(ttft=0, chunks=TEXT_CHUNKS, duration=PACED_SECONDS)
        paced = await _medians(Ways(url, client, []).all(), replace(text, paced=True))
        called = [{"name": "look", "arguments": {"place": "mill", "times": 2}}] * CALLS
        script.script({"reply": {"tool_calls": called}})
        # Each call is three chunks: its name, and its arguments in two halves.
        calls = await _medians(Ways(url, client, [look]).all(), Load(CALLS * 3, CALLS))
    return {
        "text": _with_ratios(at_once),
        "paced_text": _with_ratios(paced),
        "tool_calls": _with_ratios(calls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "streaming.json")
    options = parser.parse_args()
    preload()
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedModelProcess(log=Path(folder) / "model.log") as server,
    ):
        figures = asyncio.run(measured(server.url))
    result = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "repeats": REPEATS,
        "streams_per_repeat": STREAMS,
        "chunks_per_stream": {"text": TEXT_CHUNKS, "tool_calls": CALLS * 3},
        "paced_stream_seconds": PACED_SECONDS,
        **figures,
    }
    text = json.dumps(result, indent=2) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text if options.json else table(figures))


def table(figures: dict[str, Any]) -> str:
    """Return the medians as a table of Markdown."""
    lines = ["| CPU per chunk, us | text | paced text | tool calls |", "|---|---|---|---|"]
    kinds = [
        figures[kind]["microseconds_per_chunk"] for kind in ("text", "paced_text", "tool_calls")
    ]
    lines += [
        f"| {name} | {' | '.join(f'{kind[name]:g}' for kind in kinds)} |" for name in kinds[0]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
