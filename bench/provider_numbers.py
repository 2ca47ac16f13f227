"""What a provider said it used, beside what the ledger has of it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from deploy.models.director import Call

Numbers: TypeAlias = tuple[int, int, int]
"""A call's tokens: all of the prompt, of it read from the cache, and of the answer."""

PRICES = {
    "version": "test-1",
    "unit": "US dollars for a million tokens",
    "models": {
        "openai/scripted": [
            {"valid_from": "2020-01-01", "input": 1000, "output": 2000, "cache_read": 100}
        ]
    },
}

FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 500, "times": 1},
    {"kind": "status", "status": 429, "retry_after": 0.01, "times": 1},
    {"kind": "close", "times": 1},
    {"kind": "close", "after": 2},
    {"kind": "malformed", "after": 1},
    {"kind": "garbage", "after": 1},
    {"kind": "error_event", "after": 1},
    {"kind": "error_event", "after": 0, "times": 1},
    {"kind": "content_type", "times": 1},
    {"kind": "no_done"},
    {"kind": "no_finish"},
    {"kind": "no_usage"},
    {"kind": "empty", "times": 1},
]


def said(number: int, *, fault: Mapping[str, Any] | None = None, calls: int = 1) -> str:
    """Something that the scripted model answers in so many calls, each with its own numbers."""
    turns: list[dict[str, Any]] = []
    for turn in range(calls):
        unlike = number * 10 + turn
        usage = {
            "prompt_tokens": 10_000 + unlike,
            "completion_tokens": 1 + unlike % 97,
            "cached_tokens": unlike % 5 * 100,
        }
        last = turn == calls - 1
        turns.append(
            {"text": f"Word by word, {number}.", "usage": usage, "delay": 0.001}
            if last
            else {"tool_calls": [{"name": "roll_dice", "arguments": {}}], "usage": usage}
        )
    if fault is not None:
        turns[-1]["fault"] = fault
    return f"{number} [[script: {json.dumps(turns)}]]"


def provider_numbers(calls: Iterable[Call]) -> Counter[Numbers]:
    """What the scripted model reported, call by call."""
    found: Counter[Numbers] = Counter()
    for call in calls:
        if call.usage is not None:
            used: Any = call.usage
            details = used.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens", 0)
            found[used["prompt_tokens"], cached, used["completion_tokens"]] += 1
    return found


def ledger_numbers(rows: Iterable[Mapping[str, Any]]) -> Counter[Numbers]:
    """What the ledger has of it."""
    return Counter(
        (row["input"] + row["cache_read"] + row["cache_write"], row["cache_read"], row["output"])
        for row in rows
        if row["reported"]
    )
