"""`python -m shared.dead_tasks`: see what was given up or is in quarantine, and requeue it."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import aclosing
from uuid import UUID

from shared.command import complain, run_on_database, say
from shared.encoding import dumps_text
from shared.errors import QueueUnavailable, Refused
from shared.events import Publisher
from shared.queue import Hints
from shared.records import Accepted
from shared.redis_pool import connect_redis
from shared.settings import Settings
from shared.store import dead_tasks, quarantine
from shared.store.database import Database
from shared.store.dead_tasks import DeadTask
from shared.store.quarantine import Quarantined


def main(arguments: list[str] | None = None) -> int:
    """Run the command; one clear line for each thing that failed, and 1 then."""
    parser = argparse.ArgumentParser(prog="python -m shared.dead_tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show dead tasks, the newest first")
    listing.add_argument("--limit", type=int, default=100, help="how many at the most (100)")
    waiting = commands.add_parser("quarantine", help="show the sessions in quarantine")
    for one in (listing, waiting):
        one.add_argument("--json", action="store_true", help="one JSON object per line")
    requeue = commands.add_parser("requeue", help="give a dead task's action to its session again")
    requeue.add_argument("task", type=UUID, nargs="+", help="id of a dead task")
    requeue.add_argument("--again", action="store_true", help="also where it was requeued before")
    options = parser.parse_args(arguments)
    return run_on_database(lambda settings, db: _run(settings, db, options))


async def _run(settings: Settings, db: Database, options: argparse.Namespace) -> int:
    match options.command:
        case "list":
            for dead in await dead_tasks.page(db, limit=max(options.limit, 0)):
                say(dumps_text(dead) if options.json else _dead_line(dead))
        case "quarantine":
            for one in await quarantine.page(db):
                say(dumps_text(one) if options.json else _quarantine_line(one))
        case _:
            return await _requeue(settings, db, options)
    return 0


def _dead_line(one: DeadTask) -> str:
    again = f"requeued as {one.requeued[-1]}  " if one.requeued else ""
    message = (one.error or {}).get("message", "")
    return (
        f"{one.task_id}  {one.finished_at:%Y-%m-%d %H:%M:%S}  session {one.session_id}  "
        f"user {one.user_id}  {one.agent}/{one.action_type}  {again}{message}"
    )


def _quarantine_line(one: Quarantined) -> str:
    if one.runs:
        state = "runs alone"
    else:
        state = "waits" if one.ready_at is None else f"waits until {one.ready_at:%H:%M:%S}"
    return (
        f"{one.session_id}  user {one.user_id}  {one.agent}  task {one.task_id}  "
        f"attempts {one.attempts}  {state}"
    )


async def _requeue(settings: Settings, db: Database, options: argparse.Namespace) -> int:
    code = 0
    requeued = []
    rules, again = settings.budgets, options.again
    for task_id in options.task:
        try:
            requeued.append(await dead_tasks.requeue(db, task_id, rules, again=again))
        except Refused as error:
            code = complain(error)
        else:
            say(f"{task_id}  requeued as {requeued[-1].task_id}")
    await _announce(settings, requeued)
    return code


async def _announce(settings: Settings, requeued: Sequence[Accepted]) -> None:
    """Tell clients and workers; where Redis is away they find out by themselves."""
    async with aclosing(connect_redis(settings)) as redis:
        try:
            await Publisher(redis).events_of_many((one.session_id, one.events) for one in requeued)
            await Hints(settings, redis).send({one.session_id for one in requeued})
        except QueueUnavailable as error:
            complain(f"Redis was not told, workers find it later: {error}")


if __name__ == "__main__":
    sys.exit(main())
