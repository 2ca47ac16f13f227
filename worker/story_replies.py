"""Reading what a model answered where JSON was asked for: tolerant of its wrapping, not of halves.

A half of an answer could mean the opposite of the whole, so it counts as none.
"""

import json
import math
import re

from shared.encoding import JsonObject, well_formed

_TRIES = 20


def json_in(text: str, key: str) -> JsonObject | None:
    """The first whole JSON object with a certain key, be it fenced, introduced or chatted about."""
    decoder = json.JSONDecoder()
    for opening in list(re.finditer(r"\{", text))[:_TRIES]:
        try:
            value, _ = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and key in value:
            return value
    return None


def number_in(value: object) -> float | None:
    """A number, also one that is written as a text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None


def text_in(value: object, most: int) -> str:
    """A short text on one line; empty where there is none."""
    return well_formed(" ".join(value.split()))[:most] if isinstance(value, str) else ""
