"""How a worker keeps below its memory limit, and what it says where that can't be done."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from shared.errors import SettingsError
from shared.records import KnownBranch
from shared.settings import Settings, load_settings
from tests.waiting import until, within
from worker.agent_cache import AgentCache
from worker.memory_limit import (
    FEWEST_SESSIONS,
    LITELLM_BYTES,
    SESSION_BYTES,
    MemoryWatch,
    Share,
    container_bytes,
    resident_bytes,
    share_of,
)
from worker.slots import Slots
from worker.transcript import Transcript

MIB = 1 << 20


def settings(**changed: object) -> Settings:
    direct: dict[str, object] = {"model_path": "direct"}
    return load_settings().model_copy(update=direct | changed)


def full_cache() -> AgentCache:
    cache = AgentCache(most=100, most_bytes=MIB, idle_seconds=60)
    for number in range(8):
        cache.keep(UUID(int=number), Transcript(KnownBranch(1, 1), (b"x" * 1000,)))
    return cache


# -- what a worker may use ----------------------------------------------------------------------


def test_without_a_limit_all_is_as_the_settings_say() -> None:
    assert share_of(settings(), resident=90 * MIB, container=None) == Share(None, 1000, 64 * MIB)


def test_a_container_is_a_limit() -> None:
    share = share_of(settings(), resident=90 * MIB, container=1000 * MIB)

    assert share == Share(900 * MIB, 1000, 64 * MIB)


def test_a_container_with_less_than_the_limit_counts_instead() -> None:
    with capture_logs() as logs:
        share = share_of(
            settings(worker_memory=2000 * MIB), resident=90 * MIB, container=1000 * MIB
        )

    assert share.limit == 900 * MIB
    assert [(one["log_level"], one["event"]) for one in logs] == [
        ("warning", "the container has less memory than the limit")
    ]


def test_with_little_memory_a_worker_runs_fewer_tasks_and_holds_fewer_sessions() -> None:
    limit = 90 * MIB + 100 * SESSION_BYTES
    with capture_logs() as logs:
        share = share_of(settings(worker_memory=limit), resident=90 * MIB, container=None)

    assert share == Share(limit, 100, 25 * SESSION_BYTES)
    assert [(one["log_level"], one["tasks"]) for one in logs] == [("warning", 100)]


@pytest.mark.parametrize(
    ("path", "resident", "hint"),
    [
        ("direct", 50 * MIB, ""),
        ("litellm", 50 * MIB, " (FIRESIDE_MODEL_PATH=direct needs less)"),
    ],
)
def test_with_too_little_memory_a_worker_says_what_it_needs(
    path: str, resident: int, hint: str
) -> None:
    few = settings(worker_memory=50 * MIB, model_path=path)
    with pytest.raises(SettingsError) as raised:
        share_of(few, resident=resident, container=None)

    litellm = LITELLM_BYTES if path == "litellm" else 0
    needed = resident + litellm + FEWEST_SESSIONS * SESSION_BYTES
    assert str(raised.value) == (
        f"FIRESIDE_WORKER_MEMORY: {50 * MIB:,} bytes are too few, this worker needs {needed:,}"
        f"{hint}"
    )


@pytest.mark.parametrize(
    ("name", "said", "found"),
    [
        ("memory.max", "805306368\n", 805306368),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "805306368\n", 805306368),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("else", "1", None),
    ],
)
def test_a_container_says_how_much_it_has(
    tmp_path: Path, name: str, said: str, found: int | None
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(said)

    assert container_bytes(tmp_path) == found


def test_this_process_knows_what_it_has() -> None:
    assert 10 * MIB < resident_bytes() < 100_000 * MIB


def test_a_worker_that_can_t_run_anything_does_not_start(postgres_url: str, redis_url: str) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "FIRESIDE_WORKER_MEMORY": "30000000",
        "FIRESIDE_MODEL_PATH": "direct",
    }
    worker = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", "worker"],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert worker.returncode == 1
    said = "fireside: the worker can't start: FIRESIDE_WORKER_MEMORY: 30,000,000 bytes are too few"
    assert said in worker.stderr


# -- while it runs ------------------------------------------------------------------------------


def test_above_its_limit_a_worker_lets_nobody_in_and_forgets() -> None:
    slots, cache = Slots(4), full_cache()
    watch = MemoryWatch(100 * MIB, slots, cache)
    slots.take_free()

    with capture_logs() as logs:
        assert watch.look(101 * MIB)
        assert slots.all_taken
        assert not slots.take_free()
        assert len(cache) == 4
        assert watch.look(99 * MIB)  # not yet: it would go to and fro
        assert not watch.look(94 * MIB)
        assert slots.take_free()
        assert len(cache) == 4

    events: list[Any] = [
        (one["log_level"], one["event"], one["in_flight"], one["cached"]) for one in logs
    ]
    assert events == [
        ("warning", "memory limit reached: sessions wait, the cache shrinks", 1, 4),
        ("info", "below the memory limit: sessions are let in again", 1, 4),
    ]


def test_short_of_memory_a_worker_goes_on_with_one_at_a_time() -> None:
    slots = Slots(4)
    slots.hold_back(True)

    assert not slots.all_taken
    assert slots.take_free()
    assert not slots.take_free()
    slots.give_back()
    assert slots.take_free()
    assert slots.taken == 1


async def test_who_waits_for_memory_is_let_in_when_there_is_some() -> None:
    slots, stop = Slots(4), threading.Event()
    slots.take_free()
    slots.hold_back(True)
    waiting = asyncio.create_task(asyncio.to_thread(slots.take, stop))
    await until(lambda: slots.wanted)
    slots.hold_back(False)

    assert await within(waiting)
    assert slots.taken == 2
