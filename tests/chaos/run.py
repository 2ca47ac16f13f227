"""One seed from its plan to its row: the fleet is built, struck, judged and taken down."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.checker import KINDS, Defect, check, count
from tests.chaos.history import Call, History
from tests.chaos.measures import Paid, Recovery, paid, percentile, recoveries, wasted
from tests.chaos.plan import Plan
from tests.chaos.players import Crowd, Player, Progress
from tests.chaos.recorder import Recorder
from tests.chaos.stage import UNCHANGED, Front, Settings, Stage, built
from tests.chaos.storm import Crash, Storm
from tests.chaos.tables import read_tables

SETTLE_SECONDS = 90.0
"""How long after the last fault everything may take to end."""


@dataclass(slots=True)
class Result:
    """What came of a run. `left` are the tasks whose end their players did not see in time."""

    plan: Plan
    history: History
    defects: list[Defect]
    paid: Paid
    recoveries: list[Recovery]
    seconds: float
    drops: int = 0
    doubles: int = 0
    crashes: list[Crash] = field(default_factory=list)
    hinted: list[tuple[int, float]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def clear(self) -> list[float]:
        """Seconds to recover where another worker and all servers stood."""
        return [one.seconds for one in self.recoveries if one.clear]

    def row(self) -> dict[str, Any]:
        """The run as one row of JSON."""
        tables = self.history.tables
        every = [one.seconds for one in self.recoveries]
        kinds = Counter(fault.kind for lane in self.plan.lanes.values() for fault in lane)
        return {
            "seed": self.plan.seed,
            "actions": len(self.plan.actions),
            "tasks": len(tables.tasks),
            "ends": dict(Counter(task.status for task in tables.tasks)),
            "faults": self.plan.faults,
            "by_kind": dict(sorted(kinds.items())),
            "model_faults": self.plan.model_faults,
            "drops": self.drops,
            "double_sends": self.doubles,
            **{str(kind): number for kind, number in count(self.defects).items()},
            "false_dead": sum(task.status == "dead" for task in tables.tasks),
            "recovery": spread(self.clear),
            "recovery_overlapped": spread([s for s in every if s not in self.clear]),
            "recoveries": [[one.kind, one.seconds, one.clear] for one in self.recoveries],
            "hinted_again": [list(pair) for pair in self.hinted if pair[0]],
            "calls_completed": self.paid.completed,
            "calls_needed": self.paid.needed,
            "calls_unread": self.paid.unread,
            "paid_ratio": round(self.paid.ratio, 4),
            "wasted": dict(wasted(self.history)),
            "letters": len(self.history.letters),
            "crashes": len(self.crashes),
            "errors": self.errors,
            "seconds": round(self.seconds, 1),
        }

    @property
    def good(self) -> bool:
        """Whether no promise was broken."""
        return not self.defects

    def summary(self) -> str:
        """The last line of a run."""
        return summary([self.row()])


def spread(values: list[float]) -> dict[str, float]:
    """How many values, their median, 95th percentile and largest."""
    return {
        "n": len(values),
        "p50": round(percentile(values, 50), 2),
        "p95": round(percentile(values, 95), 2),
        "max": round(max(values, default=0.0), 2),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """The line that a run of one or more seeds ends with."""
    defects = " ".join(f"{kind}={sum(row[kind] for row in rows)}" for kind in KINDS)
    seconds = [one[1] for row in rows for one in row["recoveries"] if one[2]]
    needed = sum(row["calls_needed"] for row in rows)
    ratio = sum(row["calls_completed"] for row in rows) / needed if needed else 1.0
    faults = sum(row["faults"] for row in rows)
    p95 = percentile(seconds, 95)
    return f"{defects} faults={faults} recovery_p95={p95:.2f} paid_ratio={ratio:.3f}"


async def run(
    plan: Plan, folder: Path, *, front: Front | None = None, settings: Settings = UNCHANGED
) -> Result:
    """Run a plan in an empty folder; everything that was started has ended when this returns.

    Args:
        settings: settings of the fleet that are to be others than in a storm.
    """
    began = time.monotonic()
    recorder = Recorder()
    async with recorder.serving():
        with built(folder, recorder=recorder.url, front=front, settings=settings) as stage:
            history = History(workers=stage.workers, actions=plan.actions)
            stage.model.script(*plan.rules)
            storm = Storm(stage, plan, history, Progress())
            await storm.wait_ready()
            crowd, left = await _perform(stage, plan, storm, history)
            history.letters = recorder.letters
            history.calls = [
                Call(one.key, one.rule, one.turn, one.began, one.ended, one.end)
                for one in stage.model.calls()
            ]
            history.tables = await asyncio.to_thread(read_tables, stage.postgres.url)
    return Result(
        plan=plan,
        history=history,
        defects=check(history),
        paid=paid(history),
        recoveries=recoveries(history),
        seconds=time.monotonic() - began,
        drops=crowd.drops,
        doubles=crowd.doubles,
        crashes=storm.crashes,
        hinted=storm.hinted,
        left=left,
        errors=dict(crowd.errors),
    )


async def _perform(
    stage: Stage, plan: Plan, storm: Storm, history: History
) -> tuple[Crowd, list[str]]:
    """Have all players play in the storm; the crowd, and the tasks that did not end in time."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        urls = [gateway.url for gateway in stage.fleet.gateways]
        crowd = Crowd(urls, http, history, storm.progress)
        rng = random.Random(plan.seed)
        players = [Player(crowd, role, random.Random(rng.random())) for role in plan.roles]
        guard = asyncio.create_task(storm.guard())
        playing = [asyncio.create_task(player.play()) for player in players]
        try:
            await storm.rage()
            await asyncio.wait(playing, timeout=SETTLE_SECONDS)
        finally:
            for task in [guard, *playing]:
                task.cancel()
            ended = await asyncio.gather(*playing, guard, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
    return crowd, [task for player in players for task in sorted(player.open)]
