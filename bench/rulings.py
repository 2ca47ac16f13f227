"""What it saves that rulings are kept: `python -m bench.rulings [--players N] [--json]`.

N players say the sentences of `bench.referee` in their scenes, one player after the other, so that
the first pays for all. The scripted model answers as a small hosted one would (0.3 s to the first
token, the whole a quarter of a second later), or at once, so that the time is our own; it counts a
token for every four characters of a prompt. Redis and the model are real servers of this machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from agent_core import Model, StreamFn
from agent_core.default_stream import stream_model
from agent_core.http_connections import close_connections
from bench.referee import Sentence, sentences, task_of
from deploy.local.model import ScriptedModelProcess
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.encoding import JsonObject
from shared.kept_answers import KeptAnswers
from worker.known_answers import KnownAnswers, Lookups
from worker.referee import rule
from worker.story_calls import StoryCalls

RULING = json.dumps(
    {"choice": 1, "confidence": 0.9, "check": None, "reason": "they say that they do it"}
)
KEPT_SECONDS = 86_400
HOSTED = {"ttft": 0.3, "duration": 0.25}


async def calls_of(model: Model, stream_fn: StreamFn, data: Sequence[Sentence]) -> list[JsonObject]:
    """What one player's sentences took, in tokens and milliseconds."""
    made = []
    for one in data:
        task = task_of(model)
        calls = StoryCalls(replace(task, resources=replace(task.resources, stream_fn=stream_fn)))
        begun = time.perf_counter()
        await rule(calls, one.scene, one.says)
        ms = (time.perf_counter() - begun) * 1000
        made += [call | {"ms": ms} for call in calls.made]
    return made


def figures(calls: Sequence[JsonObject]) -> JsonObject:
    """The calls of one kind; `ms` are median, 95th percentile and most."""
    times = sorted(call["ms"] for call in calls)
    picked = [statistics.median(times), times[len(times) * 95 // 100], times[-1]]
    return {
        "rulings": len(calls),
        "tokens": sum(call["tokens"] for call in calls),
        "ms": [round(ms, 2) for ms in picked],
    }


async def measured(
    server: ScriptedModelProcess, valkey: EmbeddedValkey, players: int, timing: dict[str, float]
) -> JsonObject:
    """The first player's rulings, the others', and the same without any cache."""
    data = list(sentences())
    hand = ScriptedModel(server.url)
    hand.script({"reply": {"text": RULING, "split": "whole", **timing}})
    model = Model("scripted", "openai", base_url=server.url, api="openai", max_attempts=1)
    redis = Redis.from_url(valkey.url)
    await redis.flushall()
    known = KnownAnswers(KeptAnswers(redis), KEPT_SECONDS, Lookups())
    await calls_of(model, stream_model, data[:1])  # opens connections
    without = await calls_of(model, stream_model, data)
    before = hand.stats().requests
    first, *others = [
        await calls_of(model, known.before(stream_model, f"player {number}"), data)
        for number in range(players)
    ]
    found = {
        "players": players,
        "requests": hand.stats().requests - before,
        "without a cache": figures(without),
        "asked": figures(first),
        "known": figures([call for calls in others for call in calls]),
        "bytes": await bytes_in(redis),
    }
    await redis.aclose()
    hand.reset()
    return found


async def bytes_in(redis: Redis) -> JsonObject:
    """What Redis takes for an answer, and for one more line on a user's list."""
    answers = [key async for key in redis.scan_iter("fireside:answer:*")]
    lists = [key async for key in redis.scan_iter("fireside:answers-of:*")]
    lines = sum([await redis.zcard(key) for key in lists])
    sizes = [
        sum([await redis.memory_usage(key, samples=0) or 0 for key in keys])
        for keys in (answers, lists)
    ]
    return {"answer": round(sizes[0] / len(answers)), "line": round(sizes[1] / lines)}


async def run(players: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            ScriptedModelProcess(log=folder / "model.log") as server,
            EmbeddedValkey(folder / "valkey", durable=False) as valkey,
        ):
            result = {
                "hosted": await measured(server, valkey, players, HOSTED),
                "at once": await measured(server, valkey, players, {}),
            }
        await close_connections()
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--players", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    options = parser.parse_args()
    result = uvloop.run(run(max(2, options.players)))  # the loop of workers
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
