"""Reading the arguments of a tool call: whole ones, and ones that are still being streamed."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

# Only with an exponent or so many digits is a number too large. To write every value costs several
# times what reading it does, and arguments that are streamed are read with each piece.
_MAY_BE_TOO_LARGE = re.compile(r"[0-9](?:[eE]|[0-9]{18})")


def partial_arguments(text: str) -> dict[str, Any]:
    """Return what is there of a JSON object whose end has not come yet."""
    try:
        value = _read(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def whole_arguments(text: str) -> tuple[dict[str, Any], str | None]:
    """Return the arguments and None, or an empty dict and the text if it is no JSON object."""
    if not text.strip():
        return {}, None
    try:
        value = _read(text)
        # Some models write their JSON as a JSON string.
        value = _read(value) if isinstance(value, str) else value
    except ValueError:
        return {}, text
    return (value, None) if isinstance(value, dict) else ({}, text)


def check_numbers(value: Any) -> None:
    """Raise ValueError, which says why, where a value has numbers that not all JSON can hold."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("has a number that is not finite") from None
    json.loads(text, parse_int=whole_number)


def whole_number(digits: str) -> int:
    """Read a whole number; raises ValueError for one that others could neither read nor store."""
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("has a whole number of more than 64 bits")
    return number


def _read(text: str, *, allow_partial: Literal["off", "trailing-strings"] = "off") -> Any:
    """Return a JSON value that can be written as JSON again; raises ValueError."""
    from pydantic_core import from_json  # noqa: PLC0415 - heavy, and only needed for tools

    value = from_json(text, allow_partial=allow_partial, allow_inf_nan=False)
    if _MAY_BE_TOO_LARGE.search(text):
        check_numbers(value)  # 1e999 is read as infinity whatever is allowed
    return value


def as_text(arguments: dict[str, Any]) -> str:
    """Return arguments as the text that models are given back."""
    return json.dumps(arguments, ensure_ascii=False)
