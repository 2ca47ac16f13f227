"""Rows of several rounds as one, and rows as a table in a document."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SUMMED = ("turns", "ok", "errors")
"""Over all rounds, so that no error hides behind a median."""


class MarkersMissingError(Exception):
    """A document has no place for a table."""


def medians(rounds: Sequence[Row]) -> dict[str, Any]:
    """One row of the medians of several rounds' figures; texts are the last round's.

    `rounds` says how many there were, `turns_s_rounds` and `cpu_ms_turn_rounds` what each gave.
    """
    worked = [row for row in rounds if row["ok"]] or list(rounds)
    merged = {name: _median([row[name] for row in worked if name in row]) for name in worked[-1]}
    for name in SUMMED:
        merged[name] = sum(row[name] for row in rounds)
    samples = {text for row in rounds for text in row.get("err_sample", [])}
    merged["err_sample"] = sorted(samples)[:2]
    merged["rounds"] = len(rounds)
    for name in ("turns_s", "cpu_ms_turn"):
        merged[f"{name}_rounds"] = [row.get(name) for row in rounds]
    return merged


def _median(values: Sequence[Any]) -> Any:
    last = values[-1]
    if isinstance(last, Mapping):
        return {key: _median([value[key] for value in values if key in value]) for key in last}
    if isinstance(last, list):
        return [_median(list(column)) for column in zip(*values, strict=False)]
    numbers = [value for value in values if isinstance(value, int | float)]
    return round(statistics.median(numbers), 2) if numbers else last


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote; no file has no rows."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_others(old: Iterable[Row], new: Sequence[Row], *key: str) -> list[Row]:
    """The new rows, before them the old ones that none of them replaces."""
    replaced = {tuple(row.get(name) for name in key) for row in new}
    return [row for row in old if tuple(row.get(name) for name in key) not in replaced] + [*new]


def table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(str(cell) for cell in row)} |\n" for row in rows)


def replace_part(text: str, name: str, body: str) -> str:
    """A document with `body` between the markers of `name`.

    Raises:
        MarkersMissingError: the markers are not there, in this order.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise MarkersMissingError(f"the document has no {begin.strip()} ... {end}")
    return f"{before}{begin}\n{body.strip()}\n\n{end}{after}"


def replace_in_file(path: Path, name: str, body: str) -> None:
    """`replace_part` of a file."""
    path.write_text(replace_part(path.read_text(), name, body))


def comparison(rows: Sequence[Row]) -> str:
    """Two tables: what players saw, and what it cost."""
    seen = table(
        (
            "workload",
            "target",
            "rounds",
            "turns/s",
            "errors",
            "accept p50 / p99, ms",
            "first delta over the model p50 / p99",
            "total over the model p50",
            "at once",
            "pieces a turn",
            "messages shown to the model a turn",
        ),
        (
            (
                row["workload"],
                row["target"],
                row.get("rounds", 1),
                _bold(row["turns_s"]),
                f"{row['errors']} of {row['turns']}",
                _two(row["accept_ms"]),
                _two(row["ttft_over_ms"]),
                _number(row["total_over_ms"][0]),
                row["conc_peak"],
                _number(row["deltas_per_turn"]),
                _number(_shown(row)),
            )
            if row["ok"]
            else _failed(row, 11)
            for row in rows
        ),
    )
    served = [row for row in rows if row["ok"] and row["target"] != "direct"]
    cost = table(
        (
            "workload",
            "target",
            "CPU, ms a turn",
            "of it by part",
            "memory (PSS), MB",
            "Postgres: transactions, KB of log",
            "Redis commands",
            "longest stall of a loop, ms",
            "others, cores",
        ),
        (
            (
                row["workload"],
                row["target"],
                _bold(row["cpu_ms_turn"]),
                _parts({**row["app_split"], **_stores(row["cpu_split"])}),
                _number(row["peak_pss_mb"]),
                f"{row['pg_transactions_turn']:.1f}, {row['pg_wal_kb_turn']:.0f}"
                if "pg" in row["cpu_split"]
                else "-",
                _number(row["redis_commands_turn"]) if "redis" in row["cpu_split"] else "-",
                _parts(row.get("longest_stall_ms", {})) or "-",
                row["others_cores"],
            )
            for row in served
        ),
    )
    return f"{seen}\n{cost}"


def _shown(row: Row) -> float:
    """Messages of all requests to the model for each turn of a round."""
    return float(row["roles_seen"] * row.get("rounds", 1) / row["turns"])


def _failed(row: Row, cells: int) -> list[object]:
    reason = " ".join("; ".join(row["err_sample"]).replace("|", "/").split())[:120]
    dashes = ["-"] * (cells - 5)
    rounds = row.get("rounds", 1)
    return [row["workload"], row["target"], rounds, f"failed: {reason}", row["errors"], *dashes]


def _stores(split: Mapping[str, float]) -> dict[str, float]:
    return {name: split[name] for name in ("pg", "redis") if name in split}


def _parts(split: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {_number(ms)}" for part, ms in split.items())


def _two(figures: Sequence[float | None]) -> str:
    return f"{_number(figures[0])} / {_number(figures[-1])}"


def _bold(value: float) -> str:
    return f"**{_number(value)}**"


def _number(value: float | None) -> str:
    """Three digits are as much as such a figure is good for."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
