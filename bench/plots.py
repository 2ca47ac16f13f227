"""Bar charts as SVG; readable on light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT = 760, 150, 70
BAR, GAP, HEAD, FOOT = 18, 22, 44, 28
INK, FAINT = "#7a7f87", "#7a7f8744"
COLOURS = {"direct": "#9aa0a8", "fireside": "#d9622b", "fireside-litellm": "#e8a27c"}
OTHER = "#4a7fb5"


@dataclass(frozen=True)
class Bar:
    """One value of one target."""

    target: str
    value: float


def grouped(
    title: str, unit: str, groups: Mapping[str, Sequence[Bar]], *, logarithmic: bool = False
) -> str:
    """Horizontal bars in groups, the largest first in each; each bar bears its value.

    Args:
        logarithmic: for values of several orders of magnitude; the axis then begins at 1.
    """
    largest = max((bar.value for bars in groups.values() for bar in bars), default=1.0)
    ticks = _ticks(largest, logarithmic=logarithmic)
    parts, top = [], HEAD
    for name, bars in groups.items():
        parts.append(_text(4, top + BAR - 5, name, weight="bold"))
        for bar in sorted(bars, key=lambda one: -one.value):
            length = _place(bar.value, ticks[-1], logarithmic=logarithmic)
            colour = COLOURS.get(bar.target, OTHER)
            parts += [
                _text(LEFT - 6, top + BAR - 5, bar.target, anchor="end"),
                f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR - 3}" rx="2" '
                f'fill="{colour}"/>',
                _text(LEFT + length + 5, top + BAR - 5, _value(bar.value)),
            ]
            top += BAR
        top += GAP
    height = top - GAP + FOOT
    lines = []
    for tick in ticks:
        x = LEFT + _place(tick, ticks[-1], logarithmic=logarithmic)
        lines += [
            f'<line x1="{x:.1f}" y1="{HEAD - 6}" x2="{x:.1f}" y2="{height - FOOT + 2}" '
            f'stroke="{FAINT}"/>',
            _text(x, height - 10, _value(tick), anchor="middle"),
        ]
    heading = _text(4, 18, f"{title}, {unit}", weight="bold")
    body = "\n".join([heading, *lines, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">\n'
        f"{body}\n</svg>\n"
    )


def throughput(rows: Sequence[Mapping[str, Any]]) -> str:
    """Turns a second of all targets."""
    return grouped("Throughput", "turns a second", _groups(rows, "turns_s"), logarithmic=True)


def cpu(rows: Sequence[Mapping[str, Any]]) -> str:
    """CPU a turn of all targets but the model alone, which has none."""
    served = [row for row in rows if row["target"] != "direct"]
    return grouped("CPU of all server processes", "ms a turn", _groups(served, "cpu_ms_turn"))


def _groups(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, list[Bar]]:
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        if row["ok"]:
            bar = Bar(row["target"], float(row[figure]))
            groups.setdefault(f"workload {row['workload']}", []).append(bar)
    return groups


def _ticks(largest: float, *, logarithmic: bool) -> list[float]:
    if logarithmic:
        return [10.0**power for power in range(max(1, math.ceil(math.log10(max(largest, 1)))) + 1)]
    largest = largest or 1.0
    step = 10.0 ** math.floor(math.log10(largest))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if largest / s <= 6)
    return [step * number for number in range(math.ceil(largest / step) + 1)]


def _place(value: float, last: float, *, logarithmic: bool) -> float:
    room = WIDTH - LEFT - RIGHT
    if logarithmic:
        return room * max(0.0, math.log10(max(value, 1.0))) / math.log10(last)
    return room * value / last


def _value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{INK}">{escape(text)}</text>'
    )
