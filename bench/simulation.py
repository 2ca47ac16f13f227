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

# What share of a part's time goes into the stations of a reply; the rest goes with its pieces.
_ACCEPT, _CLAIM, _END = 0.2, 0.2, 0.2


@dataclass(frozen=True)
class Figures:
    """What one reply takes: CPU seconds by part, traffic; and what processes weigh, in MB."""

    cpu: Mapping[str, float]
    pieces: int
    transactions: float
    log_kb: float
    commands: float
    process_mb: float = 120.0
    socket_kb: float = 40.0
    task_kb: float = 200.0


@dataclass(frozen=True)
class Habits:
    """What users do. `minutes` is how long a user has a page open a day, `peak` how much busier
    the busiest hour is than the mean one; seconds of the model as its users see it."""

    replies: float = 10.0
    minutes: float = 30.0
    peak: float = 3.0
    first_token: float = 0.5
    streaming: float = 5.0


@dataclass(frozen=True)
class Plan:
    """How many processes of each part; Postgres and Valkey are split by session."""

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
    cpu = figures.cpu
    each = {part: cpu[part] * (1 - _ACCEPT - _CLAIM - _END) / figures.pieces for part in PARTS}
    path = [
        Slice(GATEWAY, cpu[GATEWAY] * _ACCEPT / 2),
        Slice(POSTGRES, cpu[POSTGRES] * (_ACCEPT + (1 - _ACCEPT - _CLAIM - _END) / 2)),
        Slice(GATEWAY, cpu[GATEWAY] * _ACCEPT / 2, mark="accepted"),
        Slice(VALKEY, cpu[VALKEY] * _ACCEPT),
        Slice(WORKER, cpu[WORKER] * _CLAIM),
        Slice(POSTGRES, cpu[POSTGRES] * _CLAIM),
        Slice(VALKEY, cpu[VALKEY] * _CLAIM, mark="asked"),
    ]
    gap = habits.streaming / figures.pieces
    for number in range(figures.pieces):
        path += [
            Slice(WORKER, each[WORKER], after=habits.first_token + number * gap),
            Slice(VALKEY, each[VALKEY]),
            Slice(GATEWAY, each[GATEWAY], mark="" if number else "first"),
        ]
    return [
        *path,
        Slice(WORKER, cpu[WORKER] * (_ACCEPT + _END)),
        Slice(POSTGRES, cpu[POSTGRES] * (_END + (1 - _ACCEPT - _CLAIM - _END) / 2)),
        Slice(VALKEY, cpu[VALKEY] * _END),
        Slice(GATEWAY, cpu[GATEWAY] * (_CLAIM + _END)),
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
    free."""

    processes: Mapping[str, list[list[float]]]
    chance: random.Random
    used: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def serve(self, part: str, process: list[float], now: float, seconds: float) -> float:
        """Let a process work for about so long; when it is done."""
        first = min(range(len(process)), key=process.__getitem__)
        service = self.chance.expovariate(1 / seconds) if seconds else 0.0
        process[first] = max(process[first], now) + service
        self.used[part] += service
        return process[first]

    def reply(self, now: float) -> _Reply:
        """A reply of a random session."""
        return _Reply(
            now, {part: self.chance.choice(all_) for part, all_ in self.processes.items()}
        )


def _processes(plan: Plan) -> dict[str, list[list[float]]]:
    cpus = {GATEWAY: 1, WORKER: 1, POSTGRES: CPUS, VALKEY: 1}
    return {part: [[0.0] * cpus[part] for _ in range(plan.count(part))] for part in PARTS}


def simulate(
    figures: Figures, habits: Habits, rate: float, plan: Plan, *, seconds: float, seed: int = 1
) -> Outcome:
    """Replies at `rate` a second for so many seconds, after a stretch that fills the pipes."""
    chance = random.Random(seed)
    run = _Run(_processes(plan), chance)
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
    busy = {part: run.used[part] / room[part] for part in PARTS}
    return Outcome(busy, percentiles(firsts), percentiles(accepts))


def _arrivals(chance: random.Random, rate: float, seconds: float) -> Iterator[float]:
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)
