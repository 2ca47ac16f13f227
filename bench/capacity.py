"""`python -m bench.capacity`: what so many users need, and what is full first.

A discrete-event model of the busiest seconds of a day. Replies arrive at random; each takes
processor time of a gateway, a worker, Postgres and Valkey in slices, in the order in which the real
server works, and waits wherever a slice before it is not done. How much time and memory, comes from
the rows that `python -m bench` and `python -m bench.growth` wrote: workload C gives what a reply
costs whatever its length, A beside it what each piece of text adds. Machines are added to whatever
is fullest until none is busier than BUSIEST and the first piece of a reply is in time. Processes
that make vectors are counted by their CPU, which the target `fireside-vectors` gives; that a reply
waits for the vector of its cue, some milliseconds, is not in the simulation.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.growth import KEPT
from bench.load import TRAILING_SECONDS
from bench.simulation import (
    CPUS,
    GATEWAY,
    PARTS,
    POSTGRES,
    PROCESSORS,
    VALKEY,
    WORKER,
    Cost,
    Figures,
    Habits,
    Outcome,
    Plan,
    simulate,
)
from bench.workloads import WORKLOADS
from deploy.local.postgres import SETTINGS
from shared.settings import Settings

ROOT = Path(__file__).parents[1]
DAY = 86_400.0
HOURS = 24

MEMORY_MB = 2_000 * 0.8  # what an operating system leaves of 2 GB
PRICE = 18.0
PRICE_SOURCE = (
    "DigitalOcean's Basic Droplet of 2 vCPUs and 2 GiB, "
    "https://docs.digitalocean.com/products/droplets/details/pricing"
)
DISK_GB = 60.0  # of such a node
DISK_PRICE = 0.1  # $ a GB and month beyond it
VOLUME_GB = 16_000.0  # the largest volume that one node can have
DAYS_KEPT = 365.0  # of what retention does not prune
BUSIEST = 0.7  # share of a processor that may be in use in the busiest hour
LATEST_MS = 150.0  # by which the first piece of 99 % of replies comes after the model's own
POOL: int = Settings.model_fields["database_pool"].default
PRUNED_DAYS = {
    "events": float(Settings.model_fields["event_days"].default),
    "steps": float(Settings.model_fields["step_days"].default),
}
MAX_CONNECTIONS = int(SETTINGS["max_connections"])  # of the Postgres that `make up` starts
MEMORIES = 2  # of a reply: what was said and what was answered
VECTOR_KB = 384 * 2 / 1e3 + 0.008  # of one, in half precision
REPLIES = 2_000  # that are simulated at least, where that takes less than five minutes of theirs
ROWS = {GATEWAY: "gateway", WORKER: "worker", POSTGRES: "pg", VALKEY: "redis"}
"""What the parts are called in rows."""


class FiguresMissingError(Exception):
    """No row to take a figure from; the text says what to run."""


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
    disk_gb: float
    outcome: Outcome
    vectors: int = 0

    @property
    def connections(self) -> int:
        """To all Postgres together, at the most."""
        return _connections(self.plan, self.vectors)

    def price(self, node: float, gigabyte: float) -> float:
        """$ a month, the disk as it is after a year."""
        return self.nodes * node + max(0.0, self.disk_gb - self.plan.postgres * DISK_GB) * gigabyte


def figures_from(
    rows: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Any]]
) -> Figures:
    """The figures of our own target.

    Args:
        rows: of `python -m bench`; workloads A (paced) and C (not paced).
        weights: of `python -m bench.growth`.

    Raises:
        FiguresMissingError: one of the rows is missing; nothing is made up in its place.
    """
    paced, pushed = _ours(rows, "A"), _ours(rows, "C")
    making = _ours(rows, "A", "fireside-vectors")
    sockets, tasks = _weight(weights, "idle sockets"), _weight(weights, "in flight")
    idle = {part: paced["idle_split"][name] / 1e3 for part, name in ROWS.items()}
    costs = {part: _both(_net(paced, part), _net(pushed, part), paced, pushed) for part in PARTS}
    return Figures(
        cpu=costs,
        transactions=_traffic_cost("pg_transactions_turn", paced, pushed),
        log_kb=_traffic_cost("pg_wal_kb_turn", paced, pushed),
        commands=_traffic_cost("redis_commands_turn", paced, pushed),
        gap=WORKLOADS["A"].duration / paced["deltas_per_turn"],
        idle=idle,
        empty_mb={part: paced["idle_pss_mb"][name] for part, name in ROWS.items()},
        socket_kb=sockets["each_kb"],
        socket_cpu=max(0.0, sockets["idle_cpu_ms_s"] / 1e3 - idle[GATEWAY]) / sockets["count"],
        task_kb=tasks["each_kb"],
        kept_kb=_kept(weights),
        vectors=_net(making, "embed"),
        vectors_idle=making["idle_split"]["embed"] / 1e3,
        vectors_mb=making["idle_pss_mb"]["embed"],
    )


def _kept(weights: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """KB of a reply by table; the cells of growth make no vectors, whose size is known."""
    kept: Mapping[str, float] = _weight(weights, "cost")["kept_kb_turn"]
    if missing := [name for name in KEPT if name not in kept]:
        raise FiguresMissingError(
            f"the rows of growth have no size of {', '.join(missing)}: run `make bench-growth`"
        )
    return {**kept, "vectors": MEMORIES * VECTOR_KB}


def _ours(
    rows: Sequence[Mapping[str, Any]], workload: str, target: str = "fireside"
) -> Mapping[str, Any]:
    for row in rows:
        ours = (row["target"], row["workload"]) == (target, workload) and row["ok"]
        if ours and "idle_split" in row:  # with --idle 0 it is not
            return row
    raise FiguresMissingError(
        f"no row of {target} under workload {workload} with its idle CPU: run `make bench` with "
        "TARGETS=fireside,fireside-vectors"
    )


def _weight(weights: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    for row in weights:
        if row["kind"] == kind:
            return row
    raise FiguresMissingError(f"no row of kind {kind!r}: run `make bench-growth`")


def _net(row: Mapping[str, Any], part: str) -> float:
    """CPU seconds of a turn, without what the part uses anyhow while the workload lasts."""
    name = ROWS.get(part, part)
    used = row["cpu_split" if part in {POSTGRES, VALKEY} else "app_split"][name]
    turns = row["ok"] / row.get("rounds", 1)
    anyhow = (
        row["idle_split"][name] * (row["wall_s"] + row.get("trailing_s", TRAILING_SECONDS)) / turns
    )
    return float(max(0.0, used - anyhow) / 1e3)


def _traffic_cost(name: str, paced: Mapping[str, Any], pushed: Mapping[str, Any]) -> Cost:
    return _both(paced[name], pushed[name], paced, pushed)


def _both(
    paced: float, pushed: float, paced_row: Mapping[str, Any], pushed_row: Mapping[str, Any]
) -> Cost:
    """The line through two measurements with different numbers of pieces; never one that falls."""
    more = paced_row["deltas_per_turn"] - pushed_row["deltas_per_turn"]
    each = max(0.0, (paced - pushed) / more) if more > 0 else 0.0
    return Cost(max(0.0, paced - each * paced_row["deltas_per_turn"]), each)


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


def busy_with(figures: Figures, habits: Habits, load: Load) -> dict[str, float]:
    """Processors that the replies of a load keep busy, by part, and its sockets."""
    pieces = habits.pieces(figures)
    busy = {part: load.rate * cost.of(pieces) for part, cost in figures.cpu.items()}
    busy[GATEWAY] += load.sockets * figures.socket_cpu
    return busy


def smallest(figures: Figures, habits: Habits, load: Load) -> Plan:
    """The processes that the means ask for: none busier than BUSIEST, and sockets and tasks in
    memory."""
    busy = busy_with(figures, habits, load)
    by_cpu = {
        part: math.ceil(busy[part] / max(0.01, PROCESSORS[part] * BUSIEST - figures.idle[part]))
        for part in PARTS
    }
    # A node's memory is for two processes of ours.
    room = {part: (MEMORY_MB / CPUS - figures.empty_mb[part]) * 1e3 for part in (GATEWAY, WORKER)}
    by_memory = {
        GATEWAY: math.ceil(load.sockets * figures.socket_kb / room[GATEWAY]),
        WORKER: math.ceil(load.in_flight * figures.task_kb / room[WORKER]),
    }
    return Plan(**{part: max(1, by_cpu[part], by_memory.get(part, 0)) for part in PARTS})


def need(figures: Figures, habits: Habits, users: int) -> Need:
    """The smallest plan whose simulated peak is in time."""
    load = load_of(users, habits)
    plan = smallest(figures, habits, load)
    seconds = max(10.0, min(300.0, REPLIES / load.rate))
    for _ in range(20):
        outcome = simulate(figures, habits, load.rate, plan, seconds=seconds, sockets=load.sockets)
        if (outcome.first_piece[-1] or 0.0) <= LATEST_MS:
            break
        plan = plan.more(max(PARTS, key=lambda part: outcome.busy[part]))
    nodes = nodes_of(figures, habits, load, plan)
    disk = disk_gb(figures, habits, users)
    return Need(load, plan, nodes, disk, outcome, makers(figures, load))


def makers(figures: Figures, load: Load) -> int:
    """Processes that make vectors."""
    if not figures.vectors:
        return 0
    return max(1, math.ceil(load.rate * figures.vectors / (BUSIEST - figures.vectors_idle)))


def _connections(plan: Plan, vectors: int) -> int:
    return (plan.gateway + plan.worker + vectors) * POOL


def nodes_of(figures: Figures, habits: Habits, load: Load, plan: Plan) -> int:
    """Machines: one for all where all fits on it, else two processes of ours, one Postgres, or two
    Valkeys on each."""
    cpu = sum(busy_with(figures, habits, load).values()) + sum(figures.idle.values())
    cpu += load.rate * figures.vectors + figures.vectors_idle
    memory = sum(figures.empty_mb.values()) + figures.vectors_mb + _held_mb(figures, load)
    if plan == Plan() and cpu <= CPUS * BUSIEST and memory <= MEMORY_MB:
        return 1
    ours = math.ceil((plan.gateway + plan.worker + makers(figures, load)) / CPUS)
    return ours + plan.postgres + math.ceil(plan.valkey / CPUS)


def _held_mb(figures: Figures, load: Load) -> float:
    return (load.sockets * figures.socket_kb + load.in_flight * figures.task_kb) / 1e3


def disk_gb(figures: Figures, habits: Habits, users: float) -> float:
    """What the replies of DAYS_KEPT days leave in Postgres; events and steps are pruned."""
    daily = users * habits.replies
    kept = (kb * PRUNED_DAYS.get(name, DAYS_KEPT) for name, kb in figures.kept_kb.items())
    return daily * sum(kept) / 1e6


def walls(figures: Figures, habits: Habits) -> list[tuple[str, int]]:
    """What can't be had by adding processes of ours, and the users at which it is full; the first
    one first."""
    busy = busy_with(figures, habits, load_of(1_000_000, habits))
    room = {part: PROCESSORS[part] * BUSIEST - figures.idle[part] for part in (POSTGRES, VALKEY)}
    found = {
        f"the {CPUS} processors of one Postgres": room[POSTGRES] / busy[POSTGRES] * 1e6,
        "the one thread of a Valkey": room[VALKEY] / busy[VALKEY] * 1e6,
        f"{MAX_CONNECTIONS} connections of a Postgres without a pooler": _until_connections(
            figures, habits
        ),
        f"the disk of a node ({DISK_GB:g} GB) after a year": DISK_GB
        / disk_gb(figures, habits, 1.0),
        f"the largest volume ({VOLUME_GB / 1e3:g} TB) after a year": VOLUME_GB
        / disk_gb(figures, habits, 1.0),
    }
    return sorted(((name, int(users)) for name, users in found.items()), key=lambda one: one[1])


def _until_connections(figures: Figures, habits: Habits) -> float:
    def too_many(users: float) -> bool:
        load = load_of(int(users), habits)
        plan = smallest(figures, habits, load)
        return _connections(plan, makers(figures, load)) > MAX_CONNECTIONS

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
            "its disk after a year, GB",
            "Redis commands/s",
        ),
        (_traffic(figures, habits, one) for one in needs),
    )
    machines = report.table(
        (
            "users",
            "gateways",
            "workers",
            "Postgres",
            "Valkey",
            "makers of vectors",
            "connections to Postgres, at most",
            "nodes",
            "$ a month, disk included",
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


def _traffic(figures: Figures, habits: Habits, one: Need) -> list[object]:
    load, pieces = one.load, habits.pieces(figures)
    return [
        f"{load.users:,}",
        f"{_number(load.mean_rate)}, {_number(load.rate)}",
        f"{load.sockets:,.0f}",
        f"{load.in_flight:,.0f}",
        _number(load.rate * figures.transactions.of(pieces)),
        _number(load.rate * figures.log_kb.of(pieces) / 1e3),
        _number(one.disk_gb),
        _number(load.rate * figures.commands.of(pieces)),
    ]


def _machines(one: Need, price: float) -> list[object]:
    plan, outcome = one.plan, one.outcome
    fullest = max(PARTS, key=lambda part: outcome.busy[part])
    return [
        f"{one.load.users:,}",
        *(plan.count(part) for part in PARTS),
        one.vectors,
        one.connections,
        one.nodes,
        f"{one.price(price, DISK_PRICE):,.0f}",
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
    pieces = habits.pieces(figures)

    def cost(one: Cost, unit: float = 1.0) -> str:
        return f"{one.fixed * unit:.2g} + {one.each * unit:.2g}"

    cpu = ", ".join(f"{part} {cost(figures.cpu[part], 1e3)}" for part in PARTS)
    idle = ", ".join(f"{part} {figures.idle[part] * 1e3:.0f}" for part in PARTS)
    kept = ", ".join(f"{name} {kb:.1f}" for name, kb in figures.kept_kb.items())
    measured = (
        f"CPU in ms, of a reply and of each piece of its text: {cpu}; writing transactions "
        f"{cost(figures.transactions)}, KB of Postgres' log {cost(figures.log_kb)}, Redis "
        f"commands {cost(figures.commands)}; a piece each {figures.gap:.2g} s; CPU of an idle "
        f"process in ms/s: {idle}; {figures.socket_kb:.0f} KB and {figures.socket_cpu * 1e6:.1f} "
        f"us/s an idle socket, {figures.task_kb:.0f} KB a task in flight; vectors (MiniLM) "
        f"{figures.vectors * 1e3:.0f} ms of CPU a reply, their process {figures.vectors_mb:.0f} "
        f"MB; KB that a reply leaves in Postgres: {kept}"
    )
    pruned = ", ".join(f"{name} {days:g}" for name, days in PRUNED_DAYS.items())
    assumed = (
        f"{habits.replies:g} replies a user and day, {habits.minutes:g} minutes with the page "
        f"open, the busiest hour {habits.peak:g} times the mean one, a model with its first token "
        f"after {habits.first_token:g} s and {habits.streaming:g} s of text ({pieces} pieces), "
        f"processors at most {BUSIEST:.0%} busy, days that rows are kept: {pruned}, all others "
        f"{DAYS_KEPT:g}; {price:g} $ a month for a node with {DISK_GB:g} GB ({PRICE_SOURCE}), "
        f"{DISK_PRICE:g} $ for each further GB"
    )
    return f"Measured: {measured}.\n\nAssumed: {assumed}."


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
