"""A discrete-event model of the server at its busiest: replies that wait for processors.

A reply takes processor time of a gateway, a worker, Postgres and Valkey in slices, in the order in
which the real server works, and waits wherever a process has not done what came before.
"""

import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.load import percentiles

CPUS = 2
"""Processors of a node; Postgres has one for itself."""

GATEWAY, WORKER, POSTGRES, VALKEY = "gateway", "worker", "postgres", "valkey"
PARTS = (GATEWAY, WORKER, POSTGRES, VALKEY)
PROCESSORS = {GATEWAY: 1, WORKER: 1, POSTGRES: CPUS, VALKEY: 1}
"""How many a process of each part can use."""

_FULL = 0.99
"""A process that has no time for replies: they would never end."""

_STATIONS = 3
"""To accept, to claim and to end a task share alike in what does not depend on a reply's length."""


@dataclass(frozen=True)
class Cost:
    """Of one reply: what it costs whatever its length, and what each of its pieces adds."""

    fixed: float
    each: float

    def of(self, pieces: int) -> float:
        """A reply of so many pieces."""
        return self.fixed + self.each * pieces


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        cpu: CPU seconds of a reply, by part.
        gap: seconds between two pieces of a text that a worker gives on.
        idle: CPU seconds a second that a process of a part uses anyhow.
        empty_mb: what a process of a part weighs that has nothing to do.
        socket_cpu: CPU seconds a second that an idle socket takes of its gateway.
        kept_kb: what a reply leaves in Postgres, by table.
        vectors: CPU seconds of the vectors of a reply and its cue; not simulated.
        vectors_idle: CPU seconds a second of the process that makes them, without any reply.
        vectors_mb: what that process weighs.
    """

    cpu: Mapping[str, Cost]
    transactions: Cost
    log_kb: Cost
    commands: Cost
    gap: float
    idle: Mapping[str, float]
    empty_mb: Mapping[str, float]
    socket_kb: float
    socket_cpu: float
    task_kb: float
    kept_kb: Mapping[str, float]
    vectors: float = 0.0
    vectors_idle: float = 0.0
    vectors_mb: float = 0.0


@dataclass(frozen=True)
class Habits:
    """What users do. `minutes` is how long a user has a page open a day, `peak` how much busier
    the busiest hour is than the mean one; seconds of the model as its users see it."""

    replies: float = 10.0
    minutes: float = 30.0
    peak: float = 3.0
    first_token: float = 0.5
    streaming: float = 5.0

    def pieces(self, figures: Figures) -> int:
        """How many pieces the text of a reply comes in."""
        return max(1, round(self.streaming / figures.gap))


@dataclass(frozen=True)
class Plan:
    """How many processes of each part; Postgres and Valkey are split by user."""

    gateway: int = 1
    worker: int = 1
    postgres: int = 1
    valkey: int = 1

    def count(self, part: str) -> int:
        """Of one part."""
        return int(getattr(self, part))

    def more(self, part: str) -> "Plan":
        """One more of a part."""
        return replace(self, **{part: self.count(part) + 1})


@dataclass(frozen=True)
class Outcome:
    """What the model says of a plan: use of each part's processors, and times in milliseconds."""

    busy: Mapping[str, float]
    first_piece: Sequence[float | None]
    accept: Sequence[float | None]


@dataclass(frozen=True)
class Slice:
    """Processor time of one part; `after` is when it may begin at the earliest, counted from the
    beginning of the model's answer (None: as soon as the slice before it is done)."""

    part: str
    seconds: float
    after: float | None = None
    mark: str = ""


def path_of(figures: Figures, habits: Habits) -> list[Slice]:
    """The slices of one reply, in their order."""
    station = {part: cost.fixed / _STATIONS for part, cost in figures.cpu.items()}
    each = {part: cost.each for part, cost in figures.cpu.items()}
    path = [
        Slice(GATEWAY, station[GATEWAY] / 2),
        Slice(POSTGRES, station[POSTGRES]),
        Slice(GATEWAY, station[GATEWAY] / 2, mark="accepted"),
        Slice(VALKEY, station[VALKEY]),
        Slice(WORKER, station[WORKER]),
        Slice(POSTGRES, station[POSTGRES]),
        Slice(VALKEY, station[VALKEY]),
        Slice(GATEWAY, station[GATEWAY], mark="asked"),
    ]
    pieces = habits.pieces(figures)
    for number in range(pieces):
        path += [
            Slice(WORKER, each[WORKER], after=habits.first_token + number * figures.gap),
            Slice(VALKEY, each[VALKEY]),
            Slice(GATEWAY, each[GATEWAY], mark="" if number else "first"),
            Slice(POSTGRES, each[POSTGRES]),
        ]
    return [
        *path,
        Slice(WORKER, 2 * station[WORKER]),
        Slice(POSTGRES, station[POSTGRES]),
        Slice(VALKEY, station[VALKEY]),
        Slice(GATEWAY, station[GATEWAY]),
    ]


@dataclass
class _Reply:
    """One reply on its way: which process of each part it is at, and when what happened."""

    began: float
    at: Mapping[str, list[float]]
    asked: float = 0.0
    place: int = 0


@dataclass
class _Run:
    """The machines of one simulated stretch; a process is the times at which its processors are
    free, `anyhow` the share of them that is not free for replies."""

    processes: Mapping[str, list[list[float]]]
    chance: random.Random
    anyhow: Mapping[str, float]
    used: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def serve(self, part: str, process: list[float], now: float, seconds: float) -> float:
        """Let a process work for about so long; when it is done."""
        first = min(range(len(process)), key=process.__getitem__)
        service = self.chance.expovariate(1 / seconds) if seconds else 0.0
        process[first] = max(process[first], now) + service / (1 - self.anyhow[part])
        self.used[part] += service
        return process[first]

    def reply(self, now: float) -> _Reply:
        """A reply of a random session."""
        return _Reply(
            now, {part: self.chance.choice(all_) for part, all_ in self.processes.items()}
        )


def _anyhow(figures: Figures, plan: Plan, sockets: float) -> dict[str, float]:
    """The share of a process' processors that goes without any reply: timers, and idle sockets."""
    shares = {part: figures.idle[part] / PROCESSORS[part] for part in PARTS}
    shares[GATEWAY] += sockets / plan.gateway * figures.socket_cpu
    return {part: min(share, _FULL) for part, share in shares.items()}


def _processes(plan: Plan) -> dict[str, list[list[float]]]:
    return {part: [[0.0] * PROCESSORS[part] for _ in range(plan.count(part))] for part in PARTS}


def simulate(
    figures: Figures,
    habits: Habits,
    rate: float,
    plan: Plan,
    *,
    seconds: float,
    sockets: float = 0.0,
    seed: int = 1,
) -> Outcome:
    """Replies at `rate` a second for so many seconds, after a stretch that fills the pipes.

    Args:
        sockets: open ones of all gateways.
    """
    chance = random.Random(seed)
    anyhow = _anyhow(figures, plan, sockets)
    run = _Run(_processes(plan), chance, anyhow)
    path = path_of(figures, habits)
    warm = habits.first_token + habits.streaming
    firsts: list[float] = []
    accepts: list[float] = []
    queue: list[tuple[float, int, _Reply]] = []
    arrivals = _arrivals(chance, rate, warm + seconds)
    for number, at in enumerate(arrivals):
        heapq.heappush(queue, (at, number, run.reply(at)))
    number, over = len(queue), warm + seconds
    while queue:
        now, _, reply = heapq.heappop(queue)
        if now > over:
            break
        step = path[reply.place]
        if step.after is not None and now < reply.asked + step.after:
            number += 1
            heapq.heappush(queue, (reply.asked + step.after, number, reply))
            continue
        done = run.serve(step.part, reply.at[step.part], now, step.seconds)
        if step.mark == "asked":
            reply.asked = done
        elif step.mark == "accepted" and reply.began >= warm:
            accepts.append(done - reply.began)
        elif step.mark == "first" and reply.began >= warm:
            firsts.append(done - reply.began - habits.first_token)
        reply.place += 1
        if reply.place < len(path):
            number += 1
            heapq.heappush(queue, (done, number, reply))
    room = {part: sum(len(one) for one in all_) * over for part, all_ in run.processes.items()}
    busy = {part: run.used[part] / room[part] + anyhow[part] for part in PARTS}
    return Outcome(busy, percentiles(firsts), percentiles(accepts))


def _arrivals(chance: random.Random, rate: float, seconds: float) -> Iterator[float]:
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)
