"""`python -m bench.capacity`: what so many users need, and what is full first.

A discrete-event model of the busiest seconds of a day. Replies arrive at random; each takes
processor time of a gateway, a worker, Postgres and Valkey in slices, in the order in which the real
server works, and waits wherever a slice before it is not done. How much time, comes from what
`python -m bench` measured. Machines are added to whatever is fullest until none is busier than
BUSIEST and the first piece of a reply is in time.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import report
from bench.simulation import (
    CPUS,
    GATEWAY,
    PARTS,
    POSTGRES,
    VALKEY,
    WORKER,
    Figures,
    Habits,
    Outcome,
    Plan,
    simulate,
)

ROOT = Path(__file__).parents[1]
DAY = 86_400.0
HOURS = 24

MEMORY_MB = 2_000 * 0.8  # what an operating system leaves of 2 GB
PRICE = 18.0
PRICE_SOURCE = (
    "DigitalOcean's Basic Droplet of 2 vCPUs and 2 GiB, "
    "https://docs.digitalocean.com/products/droplets/details/pricing"
)
BUSIEST = 0.7  # share of a processor that may be in use in the busiest hour
LATEST_MS = 150.0  # by which the first piece of 99 % of replies comes after the model's own
POOL = 20  # connections to Postgres of each of our processes, by default
MAX_CONNECTIONS = 250  # of the Postgres that `make up` starts


class FiguresMissingError(Exception):
    """No row to take the figures from."""


@dataclass(frozen=True)
class Load:
    """The busiest hour of so many users."""

    users: int
    mean_rate: float
    rate: float
    sockets: float
    in_flight: float


@dataclass(frozen=True)
class Need:
    """What a number of users needs."""

    load: Load
    plan: Plan
    nodes: int
    outcome: Outcome


def figures_from(
    rows: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Any]]
) -> Figures:
    """The figures of our own target under the paced workload.

    Args:
        rows: of `python -m bench`.
        weights: of `python -m bench.growth`, as far as there are any.

    Raises:
        FiguresMissingError: our target was not measured under workload A (or S).
    """
    ours = [row for row in rows if row["target"] == "fireside" and row["ok"]]
    found = [row for name in ("A", "S") for row in ours if row["workload"] == name]
    if not found:
        raise FiguresMissingError("no row of target fireside under workload A: run `make bench`")
    row = found[0]
    cpu = {GATEWAY: row["app_split"]["gateway"], WORKER: row["app_split"]["worker"]}
    cpu |= {POSTGRES: row["cpu_split"]["pg"], VALKEY: row["cpu_split"]["redis"]}
    figures = Figures(
        cpu={part: ms / 1e3 for part, ms in cpu.items()},
        pieces=max(1, round(row["deltas_per_turn"])),
        transactions=row["pg_transactions_turn"],
        log_kb=row["pg_wal_kb_turn"],
        commands=row["redis_commands_turn"],
    )
    weighed = {one["kind"]: one["each_kb"] for one in reversed(weights) if one["kind"] != "cost"}
    return replace(
        figures,
        socket_kb=weighed.get("idle sockets", figures.socket_kb),
        task_kb=weighed.get("in flight", figures.task_kb),
    )


def day_curve(peak: float) -> list[float]:
    """How busy each hour is, the mean being 1 and the busiest `peak`: a quiet night, an evening.

    Raises:
        ValueError: `peak` is not between 1 and 12.
    """
    if not 1 <= peak <= HOURS / 2:
        raise ValueError("the busiest hour is 1 to 12 times the mean one")

    def curve(power: float) -> list[float]:
        # Never quite 0, or else a flat day would have an hour of nothing.
        heights = ((1 + math.cos(2 * math.pi * (hour - 20) / HOURS)) / 2 for hour in range(HOURS))
        raised = [max(height, 1e-9) ** power for height in heights]
        mean = sum(raised) / HOURS
        return [one / mean for one in raised]

    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if max(curve(middle)) < peak else (low, middle)
    return curve(high)


def load_of(users: int, habits: Habits) -> Load:
    """The busiest hour of so many users."""
    mean = users * habits.replies / DAY
    rate = mean * max(day_curve(habits.peak))
    return Load(
        users,
        mean,
        rate,
        sockets=users * habits.minutes / (24 * 60) * habits.peak,
        in_flight=rate * (habits.first_token + habits.streaming),
    )


def smallest(figures: Figures, load: Load) -> Plan:
    """The processes that the means ask for: none busier than BUSIEST, and sockets and tasks in
    memory."""
    by_cpu = {part: load.rate * figures.cpu[part] / BUSIEST for part in PARTS}
    room = (MEMORY_MB / CPUS - figures.process_mb) * 1e3  # KB for each of a node's two processes
    sockets, tasks = (
        load.sockets * figures.socket_kb / room,
        load.in_flight * figures.task_kb / room,
    )
    return Plan(
        gateway=max(1, math.ceil(by_cpu[GATEWAY]), math.ceil(sockets)),
        worker=max(1, math.ceil(by_cpu[WORKER]), math.ceil(tasks)),
        postgres=max(1, math.ceil(by_cpu[POSTGRES] / CPUS)),
        valkey=max(1, math.ceil(by_cpu[VALKEY])),
    )


def need(figures: Figures, habits: Habits, users: int) -> Need:
    """The smallest plan whose simulated peak is in time."""
    load = load_of(users, habits)
    plan = smallest(figures, load)
    seconds = max(10.0, min(300.0, 4_000 / load.rate))
    for _ in range(20):
        outcome = simulate(figures, habits, load.rate, plan, seconds=seconds)
        if (outcome.first_piece[-1] or 0.0) <= LATEST_MS:
            break
        plan = plan.more(max(PARTS, key=lambda part: outcome.busy[part]))
    return Need(load, plan, nodes_of(figures, load, plan), outcome)


def nodes_of(figures: Figures, load: Load, plan: Plan) -> int:
    """Machines: one for all where all fits on it, else two processes of ours, one Postgres, or two
    Valkeys on each."""
    cpu = load.rate * sum(figures.cpu.values())
    memory = 3 * figures.process_mb + 200 + _held_mb(figures, load)
    if plan == Plan() and cpu <= CPUS * BUSIEST and memory <= MEMORY_MB:
        return 1
    ours = math.ceil((plan.gateway + plan.worker) / CPUS)
    return ours + plan.postgres + math.ceil(plan.valkey / CPUS)


def _held_mb(figures: Figures, load: Load) -> float:
    return (load.sockets * figures.socket_kb + load.in_flight * figures.task_kb) / 1e3


def walls(figures: Figures, habits: Habits) -> list[tuple[str, int]]:
    """What can't be had by adding processes of ours, and the users at which it is full; the first
    one first."""
    per_user = load_of(1_000_000, habits).rate / 1_000_000
    found = {
        "the processors of one Postgres": CPUS * BUSIEST / figures.cpu[POSTGRES] / per_user,
        "the one thread of a Valkey": BUSIEST / figures.cpu[VALKEY] / per_user,
        f"{MAX_CONNECTIONS} connections of a Postgres without a pooler": _until_connections(
            figures, habits
        ),
    }
    return sorted(((name, int(users)) for name, users in found.items()), key=lambda one: one[1])


def _until_connections(figures: Figures, habits: Habits) -> float:
    def too_many(users: float) -> bool:
        plan = smallest(figures, load_of(int(users), habits))
        return (plan.gateway + plan.worker) * POOL > MAX_CONNECTIONS

    return _first(too_many, 1e3, 1e9)


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number at which something that stays true becomes so."""
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def tables(figures: Figures, habits: Habits, users: Sequence[int], price: float) -> str:
    """The tables of docs/scaling.md."""
    needs = [need(figures, habits, count) for count in users]
    traffic = report.table(
        (
            "users",
            "replies/s, mean and busiest hour",
            "sockets",
            "tasks in flight",
            "Postgres: writing transactions/s",
            "its log, MB/s",
            "Redis commands/s",
        ),
        (_traffic(figures, one.load) for one in needs),
    )
    machines = report.table(
        (
            "users",
            "gateways",
            "workers",
            "Postgres",
            "Valkey",
            "nodes",
            "$ a month",
            "fullest part",
            "accept p50 / p99, ms",
            "first delta over the model p50 / p99, ms",
        ),
        (_machines(one, price) for one in needs),
    )
    full = report.table(
        ("what is full", "at so many users"),
        ((name, f"{_round(count):,}") for name, count in walls(figures, habits)),
    )
    return f"{traffic}\n{machines}\n{full}"


def _traffic(figures: Figures, load: Load) -> list[object]:
    return [
        f"{load.users:,}",
        f"{_number(load.mean_rate)}, {_number(load.rate)}",
        f"{load.sockets:,.0f}",
        f"{load.in_flight:,.0f}",
        _number(load.rate * figures.transactions),
        _number(load.rate * figures.log_kb / 1e3),
        _number(load.rate * figures.commands),
    ]


def _machines(one: Need, price: float) -> list[object]:
    plan, outcome = one.plan, one.outcome
    fullest = max(PARTS, key=lambda part: outcome.busy[part])
    return [
        f"{one.load.users:,}",
        *(plan.count(part) for part in PARTS),
        one.nodes,
        f"{one.nodes * price:,.0f}",
        f"{fullest} {outcome.busy[fullest]:.0%}",
        f"{outcome.accept[0]} / {outcome.accept[-1]}",
        f"{outcome.first_piece[0]} / {outcome.first_piece[-1]}",
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _round(value: int) -> int:
    """Two digits are as much as a model is good for."""
    digits = max(0, len(str(value)) - 2)
    return round(value, -digits)


def assumptions(figures: Figures, habits: Habits, price: float) -> str:
    """What the tables rest on, in words."""
    cpu = ", ".join(f"{part} {figures.cpu[part] * 1e3:.1f}" for part in PARTS)
    measured = (
        f"CPU in ms {cpu}; {figures.transactions:.1f} writing transactions and "
        f"{figures.log_kb:.0f} KB of Postgres' log, {figures.commands:.0f} Redis commands, "
        f"{figures.pieces} pieces; {figures.socket_kb:.0f} KB an idle socket, "
        f"{figures.task_kb:.0f} KB a task in flight"
    )
    assumed = (
        f"{habits.replies:g} replies a user and day, {habits.minutes:g} minutes with the page "
        f"open, the busiest hour {habits.peak:g} times the mean one, a model with its first token "
        f"after {habits.first_token:g} s and {habits.streaming:g} s of text, processors at most "
        f"{BUSIEST:.0%} busy, {price:g} $ a month for a node ({PRICE_SOURCE})"
    )
    return f"Measured, of one reply: {measured}. Assumed: {assumed}."


def _users(text: str) -> list[int]:
    found = [int(part.replace("_", "")) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Read the figures, and print the tables or put them into docs/scaling.md."""
    results = ROOT / "bench" / "results"
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--users", type=_users, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--peak", type=float, default=3.0, help="busiest hour over the mean (3)")
    parser.add_argument("--replies", type=float, default=10.0, help="a user and day (10)")
    parser.add_argument("--minutes", type=float, default=30.0, help="with the page open a day (30)")
    parser.add_argument(
        "--price", type=float, default=PRICE, help=f"$ a node and month ({PRICE:g})"
    )
    parser.add_argument("--figures", type=Path, default=results / "latest.jsonl")
    parser.add_argument("--weights", type=Path, default=results / "growth.jsonl")
    parser.add_argument("--docs", type=Path, help="folder whose scaling.md gets the tables")
    options = parser.parse_args(argv)
    if not 1 <= options.peak <= HOURS / 2 or min(options.replies, options.minutes) <= 0:
        parser.error("--peak is 1 to 12, --replies and --minutes are above 0")
    habits = Habits(options.replies, options.minutes, options.peak)
    try:
        rows = report.read_rows(options.figures)
        figures = figures_from(rows, report.read_rows(options.weights))
    except FiguresMissingError as error:
        sys.stderr.write(f"capacity: {error}\n")
        return 2
    body = f"{assumptions(figures, habits, options.price)}\n\n"
    body += tables(figures, habits, options.users, options.price)
    print(body)
    if options.docs is not None:
        report.replace_in_file(options.docs / "scaling.md", "capacity", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
