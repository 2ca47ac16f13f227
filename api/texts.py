"""Text and objects that clients send: what Postgres, UTF-8 and JSON can't carry is refused, not
mended."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from api.problems import TOO_LARGE
from shared.encoding import JsonObject

PRINTABLE_ID = r"^[\x21-\x7e]{1,200}$"
"""Ids that clients choose: visible ASCII."""

MAX_DEPTH = 32
"""How deep an object of a client's may be nested."""

_BEYOND = 2**63


def check_text(value: str) -> str:
    """The text itself; raises ValueError for NUL and for halves of surrogate pairs."""
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not well-formed Unicode") from None
    return value


def _check_all(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"must not be nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, int) and not -_BEYOND <= value < _BEYOND:
        raise ValueError("must not contain whole numbers of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain numbers that JSON has not, or that are out of range")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _check_all(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_all(item, depth + 1)


def check_object(value: JsonObject) -> JsonObject:
    """The same for every text inside an object, and for its numbers."""
    _check_all(value)
    return value


def not_beyond(limit: int) -> AfterValidator:
    """Refuses, as `payload_too_large`, a text of more characters."""

    def check(value: str) -> str:
        if len(value) > limit:
            raise PydanticCustomError(
                TOO_LARGE, "must have at most {limit} characters", {"limit": limit}
            )
        return value

    return AfterValidator(check)


CHECKED = AfterValidator(check_text)
"""For a text with limits of its length, which stand before this: behind it pydantic takes a text
for a list, and tells of its items."""

Text = Annotated[str, CHECKED]
ClientId = Annotated[str, StringConstraints(pattern=PRINTABLE_ID)]
