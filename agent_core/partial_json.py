"""Reading the arguments of a tool call: whole ones, and ones that are still being streamed."""

from __future__ import annotations

import json
from typing import Any


def partial_arguments(text: str) -> dict[str, Any]:
    """Return what is there of a JSON object whose end has not come yet."""
    from pydantic_core import from_json  # noqa: PLC0415 - heavy, and only needed for tools

    try:
        value = from_json(text, allow_partial="trailing-strings", allow_inf_nan=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def whole_arguments(text: str) -> tuple[dict[str, Any], str | None]:
    """Return the arguments and None, or an empty dict and the text if it is no JSON object."""
    from pydantic_core import from_json  # noqa: PLC0415 - see above

    if not text.strip():
        return {}, None
    try:
        value = from_json(text, allow_inf_nan=False)
        # Some models write their JSON as a JSON string.
        value = from_json(value, allow_inf_nan=False) if isinstance(value, str) else value
    except ValueError:
        return {}, text
    return (value, None) if isinstance(value, dict) else ({}, text)


def as_text(arguments: dict[str, Any]) -> str:
    """Return arguments as the text that models are given back."""
    return json.dumps(arguments, ensure_ascii=False)
