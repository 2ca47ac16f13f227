"""`python -m bench.ledger`: the ledger against the provider's own numbers, with faults.

A thousand tasks of fifty users on real processes. A third of them meet a fault of the provider, a
connection to Postgres is cut several times a second, and a worker is killed every few seconds. The
row compares what the scripted model reported, call by call, with what the ledger has.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop
from psycopg.rows import dict_row

from bench.programs import own_folder, tell
from bench.provider_numbers import FAULTS, PRICES, ledger_numbers, provider_numbers, said
from deploy.local.fleet import Fleet
from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.migrate import migrate

SESSIONS = 50
AT_ONCE = 20

_CUT = """
    select pg_terminate_backend(pid) from (
        select pid from pg_stat_activity
        where datname = current_database() and application_name = 'fireside'
        order by random() limit 1) one
"""


async def cut(url: str, every: float) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
        while True:
            await admin.execute(_CUT)
            await asyncio.sleep(every)


async def kill(fleet: Fleet, every: float, killed: list[str]) -> None:
    while True:
        await asyncio.sleep(every)
        worker = random.choice(fleet.workers)
        worker.kill()
        killed.append(worker.name)
        await asyncio.to_thread(worker.start)


async def send(http: aiohttp.ClientSession, path: str, body: Any) -> Any:
    """Send something until it is known that it was accepted."""
    while True:
        async with http.post(path, json=body) as answer:
            if answer.status < 500:
                answer.raise_for_status()
                return await answer.json()
        await asyncio.sleep(0.05)


async def ended(http: aiohttp.ClientSession, task_id: str) -> None:
    while True:
        async with http.get(f"/v1/tasks/{task_id}?wait=5") as answer:
            if answer.status == 200 and (await answer.json())["finished_at"]:
                return
        await asyncio.sleep(0.05)


async def play(fleet: Fleet, url: str, tasks: int, *, kill_every: float) -> list[str]:
    killed: list[str] = []
    free = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(fleet.url) as http:
        sessions = [
            (await send(http, "/v1/sessions", {"agent": "companion"}))["id"]
            for _ in range(SESSIONS)
        ]

        async def one(number: int) -> None:
            fault = FAULTS[number // 3 % len(FAULTS)] if number % 3 == 0 else None
            text = said(number, fault=fault, calls=1 + number % 2)
            body = {"type": "say", "text": text, "client_action_id": str(number)}
            async with free:
                path = f"/v1/sessions/{sessions[number % SESSIONS]}/actions"
                await ended(http, (await send(http, path, body))["task_id"])

        faults = [asyncio.create_task(cut(url, 0.25))]
        if kill_every:
            faults.append(asyncio.create_task(kill(fleet, kill_every, killed)))
        try:
            await asyncio.gather(*(one(number) for number in range(tasks)))
        finally:
            for fault in faults:
                fault.cancel()
            await asyncio.gather(*faults, return_exceptions=True)
    return killed


def compared(url: str, model: ScriptedModel) -> dict[str, Any]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        rows = connection.execute("select * from usage").fetchall()
        sums = connection.execute(
            "select (select sum((coalesce(usd, 0) + estimated_usd) * mark_up) from usage)"
            " - (select sum(total) from spending) as apart"
        ).fetchone()
    provider, entered = provider_numbers(model.calls()), ledger_numbers(rows)
    assert sums is not None
    return {
        "calls": len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "provider_reported": provider.total(),
        "ledger_reported": entered.total(),
        "provider_tokens": sum((n[0] + n[2]) * times for n, times in provider.items()),
        "ledger_tokens": sum((n[0] + n[2]) * times for n, times in entered.items()),
        "in_the_ledger_only": (entered - provider).total(),
        "at_the_provider_only": (provider - entered).total(),
        "dollars_apart": float(sums["apart"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--kill-every", type=float, default=8.0, help="seconds; 0: never")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with own_folder() as folder:
        prices = folder / "prices.json"
        prices.write_text(json.dumps(PRICES))
        with (
            EmbeddedPostgres(folder / "postgres") as postgres,
            EmbeddedValkey(folder / "valkey", durable=False) as valkey,
            ScriptedModelProcess(log=folder / "model.log") as provider,
        ):
            url = postgres.create_database("ledger")
            migrate(url)
            with Fleet(
                folder,
                postgres=url,
                redis=valkey.url,
                model=provider.url,
                model_path="direct",
                prices=str(prices),
            ) as fleet:
                fleet.add_gateway()
                for _ in range(2):
                    fleet.add_worker()
                began = time.perf_counter()
                killed = uvloop.run(play(fleet, url, options.tasks, kill_every=options.kill_every))
                seconds = time.perf_counter() - began
                for worker in fleet.workers:
                    worker.stop()
                found = compared(url, ScriptedModel(provider.url))
    row = {"tasks": options.tasks, "seconds": round(seconds), "kills": len(killed), **found}
    tell(row, options.out)


if __name__ == "__main__":
    main()
