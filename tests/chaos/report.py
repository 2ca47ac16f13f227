"""The report of many seeds: tables in Markdown, and a picture of the times to recover."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.chaos.checker import KINDS
from tests.chaos.measures import percentile
from tests.chaos.plan import FAULTS

Row: TypeAlias = dict[str, Any]

PICTURE = "images/chaos-recovery.svg"

_INTRODUCTION = """\
# Chaos

`make chaos` runs seeds of real processes (2 gateways, 3 workers, Postgres, Valkey, the scripted
model) while faults strike them: processes are killed, frozen and told to stop, Redis loses what
it has, Postgres is stopped in the middle of everything, the model answers with errors, silence,
half streams and garbage, and clients drop their sockets and send each action twice. A checker
that knows nothing of the code then reads what clients got, the model's own log, what arrived of
effects outside, and the tables. This report is written by the tool; `bench/results/chaos.jsonl`
has a row for each seed.

`make chaos SEED=7 ACTIONS=240` runs one seed: the faults, what clients do and what the model gets
wrong come from the seed. It ends with one line, and with an error if any of its first five
figures is not 0.

- **lost**: an accepted action without its effect or its end. **doubled**: an action that became
  two tasks, an effect that happened twice, an event seen twice. **disordered**: ends, effects or
  events out of the order of acceptance. **gaps**: a number missing in a log or at a client,
  unannounced. **terminal missing**: a task without exactly one terminal event.
- **paid**: model calls that were answered whole over those that a run without faults needs; what
  the model itself spoilt is not counted. An answer that comes to its end at a worker that stands
  frozen (SIGSTOP, for longer than its lease or until it is killed) can be kept by nobody: such
  **unread** ones are counted apart, though a provider would bill them.
- **recovery**: seconds from the kill or the freeze of a worker until each task that it ran goes
  on elsewhere, where another worker lived all the while and neither Postgres nor Redis was struck
  meanwhile (lease 3 s). Under **overlapped** are all others.
"""


def write_report(rows: Sequence[Row], file: Path) -> None:
    """Write the report and, in the folder beside it, its picture."""
    picture = file.parent / PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw([(one[0], one[1]) for one in _recoveries(rows) if one[2]]))
    file.write_text("\n".join(_lines(rows)))


def _recoveries(rows: Sequence[Row]) -> list[list[Any]]:
    return [one for row in rows for one in row["recoveries"]]


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield _INTRODUCTION
    yield "## In short\n"
    yield from _table(["figure", "value"], _figures(rows))
    yield "## Seeds\n"
    head = ["seed", "tasks", "faults", "of the model", "drops", "sent twice"]
    head += [kind.replace("_", " ") for kind in KINDS]
    yield from _table([*head, "paid", "unread", "seconds"], (_seed(row) for row in rows))
    yield "## Faults by kind\n"
    yield from _table(["seed", *(kind.replace("_", " ") for kind in FAULTS)], _kinds(rows))
    yield "## Recovery\n"
    yield f"![Seconds to recover]({PICTURE})\n"
    head = ["seed", "n", "p50", "p95", "max", "overlapped", "p50", "p95", "max"]
    yield from _table(head, (_recovery(row) for row in rows))


def _figures(rows: Sequence[Row]) -> Iterator[list[Any]]:
    for kind in (*KINDS, "false_dead", "crashes"):
        yield [kind.replace("_", " "), sum(row[kind] for row in rows)]
    yield ["seeds", len(rows)]
    for name in ("tasks", "faults", "model_faults", "drops", "double_sends", "letters"):
        yield [name.replace("_", " "), sum(row[name] for row in rows)]
    for kind in ("kill", "freeze"):
        seconds = [one[1] for one in _recoveries(rows) if one[2] and one[0] == kind]
        spread = " / ".join(f"{percentile(seconds, share):.2f}" for share in (50, 95, 100))
        yield [f"recovery after a {kind}, p50 / p95 / max of {len(seconds)}", f"{spread} s"]
    hinted = [pair[1] for row in rows for pair in row["hinted_again"]]
    yield [
        "waiting sessions hinted again after Redis was wiped, slowest",
        f"{max(hinted, default=0):.2f} s",
    ]
    needed = sum(row["calls_needed"] for row in rows)
    paid = sum(row["calls_completed"] for row in rows)
    yield [f"model calls paid over needed ({paid} / {needed})", f"{paid / max(1, needed):.3f}"]
    unread = sum(row["calls_unread"] for row in rows)
    every = f"{(paid + unread) / max(1, needed):.3f}"
    yield [f"the same with what came to a frozen worker ({paid + unread} / {needed})", every]
    wasted: Counter[str] = Counter()
    for row in rows:
        wasted.update(row["wasted"])
    causes = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in wasted.most_common())
    yield ["answers had again, by what lost them", causes or "none"]


def _seed(row: Row) -> list[Any]:
    figures = [row[name] for name in ("seed", "tasks", "faults", "model_faults", "drops")]
    figures += [row["double_sends"], *(row[kind] for kind in KINDS)]
    return [*figures, f"{row['paid_ratio']:.3f}", row["calls_unread"], row["seconds"]]


def _kinds(rows: Sequence[Row]) -> Iterator[list[Any]]:
    for row in rows:
        yield [row["seed"], *(row["by_kind"].get(kind, 0) for kind in FAULTS)]
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["by_kind"])
    yield ["all", *(total[kind] for kind in FAULTS)]


def _recovery(row: Row) -> list[Any]:
    clear, other = row["recovery"], row["recovery_overlapped"]
    return [
        row["seed"],
        *(clear[name] for name in ("n", "p50", "p95", "max")),
        *(other[name] for name in ("n", "p50", "p95", "max")),
    ]


def _table(head: Sequence[str], rows: Iterator[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(str(value) for value in row)} |"
    yield ""


# -- the picture ---------------------------------------------------------------------------------

_WIDTH, _LEFT, _LANE, _TOP = 720, 90, 120, 24
_COLOURS = {"kill": "#b3452c", "freeze": "#3b6ea5"}
_BIN = 0.1
_DOT = 2.6


def draw(recoveries: Sequence[tuple[str, float]]) -> str:
    """A dot for each recovered task, stacked by tenths of a second; one lane for each fault."""
    longest = max([5.0, *(seconds for _, seconds in recoveries)])
    scale = (_WIDTH - _LEFT - 20) / (longest + 0.5)
    height = _TOP + _LANE * len(_COLOURS) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    floor = _TOP + _LANE * len(_COLOURS)
    for second in range(int(longest) + 1):
        x = _LEFT + second * scale
        parts.append(f'<path d="M{x:.1f} {_TOP}V{floor}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{second}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{floor + 36}" text-anchor="middle">'
        "seconds until the task went on elsewhere</text>"
    )
    for lane, (kind, colour) in enumerate(_COLOURS.items()):
        base = _TOP + _LANE * (lane + 1)
        values = [seconds for one, seconds in recoveries if one == kind]
        parts.append(f'<path d="M{_LEFT} {base}H{_WIDTH - 20}" stroke="#888"/>')
        parts.append(f'<text x="12" y="{base - 8}">{kind} ({len(values)})</text>')
        parts += _dots(values, base, scale, colour)
    return "\n".join([*parts, "</svg>", ""])


def _dots(values: Sequence[float], base: int, scale: float, colour: str) -> Iterator[str]:
    columns = Counter(int(seconds / _BIN) for seconds in values)
    # A high column is drawn closer, so that it stays in its lane.
    step = min(2 * _DOT, (_LANE - 12) / max(columns.values(), default=1))
    for column, count in sorted(columns.items()):
        x = _LEFT + (column + 0.5) * _BIN * scale
        for number in range(count):
            y = base - _DOT - number * step
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{colour}"/>'
