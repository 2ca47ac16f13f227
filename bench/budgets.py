"""`python -m bench.budgets`: what the ledger and budgets add to the statements of a task.

Each line compares ways of doing the same on one durable Postgres, in turn, in this process: an
accept without budgets, with rules that nobody has a budget by, and with a budget; a worker's write
without and with a call for the ledger; and how many calls a second the sessions of one API key can
enter, counted in one row and in as many as there are.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import text

from bench.programs import own_folder, tell
from deploy.local.postgres import EmbeddedPostgres
from shared.allowance import NO_RULES, Budget, BudgetRules
from shared.migrate import migrate
from shared.records import Claim, LedgerEntry, NewAction, NewEvent, NewSession, Outcome, Step
from shared.settings import load_settings
from shared.store import actions, budgets, claims, leases, sessions, usage
from shared.store.database import Database

SAY = NewAction({"type": "say", "text": "hi"}, key_id="key")
ROUNDS = 5
WAYS = {
    "no budgets": None,
    "rules, no budget": NO_RULES,
    "a budget": BudgetRules(Budget(Decimal(10**9)), Budget(Decimal(10**9), "day"), Decimal(1)),
}
ENTRY = LedgerEntry(0, "m/m", "reply", "done", reported=True, input=9, usd=Decimal("0.001"))
EVENTS = [NewEvent("turn_end", {})]


async def made(db: Database, user: str, count: int) -> list[UUID]:
    found = []
    for _ in range(count):
        session, _, _ = await sessions.create(db, user, NewSession("companion"), "Ember")
        claim = await claimed(db, session.id)
        await leases.end(db, claim, Outcome("completed", [NewEvent("task_completed", {})]))
        found.append(session.id)
    return found


async def claimed(db: Database, session: UUID) -> Claim:
    claim = await claims.claim(db, session, lease_seconds=600, history=1)
    assert claim is not None
    return claim


async def timed(count: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Milliseconds of one, the median of all."""
    times = []
    for number in range(count):
        began = time.perf_counter()
        await work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def accepting(db: Database, count: int, backlog: int) -> dict[str, float]:
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way, rules in WAYS.items():
            user = f"{way} {number} {backlog}"
            (session,) = await made(db, user, 1)
            for _ in range(backlog):
                await actions.accept(db, user, session, SAY, rules=rules)

            async def accept(
                _: int, user: str = user, session: UUID = session, rules: Any = rules
            ) -> None:
                await actions.accept(db, user, session, SAY, most=10**6, rules=rules)

            found[way].append(await timed(count, accept))
    return {way: round(statistics.median(times), 3) for way, times in found.items()}


async def writing(db: Database, count: int) -> dict[str, float]:
    (session,) = await made(db, "writer", 1)
    await actions.accept(db, "writer", session, SAY)
    claim = await claimed(db, session)
    found: dict[str, list[float]] = {"a step": [], "a step and its call": []}
    for number in range(ROUNDS):

        async def plain(no: int, number: int = number) -> None:
            step = Step(number * count + no, "model", "m", "pure", "h", "done", {})
            await leases.write(db, claim, EVENTS, [step], lease_seconds=600)

        async def entered(no: int, number: int = number) -> None:
            step = Step(10**6 + number * count + no, "model", "m", "pure", "h", "done", {})
            entry = LedgerEntry(
                number * count + no, "m/m", "reply", "done", reported=True, usd=ENTRY.usd
            )
            await leases.write(db, claim, EVENTS, [step], lease_seconds=600, ledger=[entry])

        found["a step"].append(await timed(count, plain))
        found["a step and its call"].append(await timed(count, entered))
    return {way: round(statistics.median(times), 3) for way, times in found.items()}


async def looking(db: Database, count: int) -> float:
    async def look(_: int) -> None:
        await budgets.left(db, "writer", WAYS["a budget"] or NO_RULES, key_id="key")

    return round(await timed(count, look), 3)


async def crowding(db: Database, sessions_of_key: int, seconds: float) -> dict[str, float]:
    """Calls a second that sessions of one key enter, by the rows that their spending is in."""
    held = []
    for session in await made(db, "crowd", sessions_of_key):
        await actions.accept(db, "crowd", session, SAY)
        held.append(await claimed(db, session))
    found: dict[str, float] = {}
    for name, slots in (("no call", 0), ("one row", 1), (f"{usage.SLOTS} rows", usage.SLOTS)):
        await db.run(text("delete from usage"))
        await db.run(text("delete from spending"))
        over, done = time.perf_counter() + seconds, 0

        async def enter(claim: Claim, number: int, slots: int = slots, over: float = over) -> int:
            count = 0
            while time.perf_counter() < over:
                entry = LedgerEntry(count, "m/m", "reply", "done", reported=True, usd=ENTRY.usd)
                parameters = usage.parameters(claim, [entry]) | {"slot": number % max(slots, 1)}
                if slots:
                    await db.run(_ENTER, parameters)
                else:
                    await db.run(_TOUCH, {"session": claim.fence.session_id})
                count += 1
            return count

        counts = await asyncio.gather(*(enter(claim, no) for no, claim in enumerate(held)))
        done = sum(counts)
        found[name] = round(done / seconds, 1)
    return found


_ENTER = text(
    f"""/* bench enter */
    with fence as (
        update sessions set writes = writes + 1 where id = :session
        returning clock_timestamp() as at
    ), {usage.NEW_USAGE} select 1
    """
)
_TOUCH = text("/* bench touch */ update sessions set writes = writes + 1 where id = :session")


async def run(url: str, count: int) -> dict[str, Any]:
    changed = {"database_url": SecretStr(url), "database_pool": 20}
    db = Database.from_settings(load_settings().model_copy(update=changed))
    try:
        return {
            "accept_ms": await accepting(db, count, backlog=0),
            "accept_ms_behind_1000": await accepting(db, count // 4, backlog=1000),
            "write_ms": await writing(db, count),
            "look_ms": await looking(db, count),
            "calls_per_second_of_one_key": await crowding(db, 40, 3.0),
        }
    finally:
        await db.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.budgets", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with own_folder() as folder, EmbeddedPostgres(folder / "postgres") as postgres:
        url = postgres.create_database("budgets")
        migrate(url)
        row = asyncio.run(run(url, options.count))
    tell(row, options.out)


if __name__ == "__main__":
    main()
