"""Text that clients send: what Postgres and UTF-8 can't carry is refused, not mended."""

from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

from shared.encoding import JsonObject

PRINTABLE_ID = r"^[\x21-\x7e]{1,200}$"
"""Ids that clients choose: visible ASCII."""

MAX_DEPTH = 32
"""How deep an object of a client's may be nested."""


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
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _check_all(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_all(item, depth + 1)


def check_object(value: JsonObject) -> JsonObject:
    """The same for every text inside an object."""
    _check_all(value)
    return value


Text = Annotated[str, AfterValidator(check_text)]
ClientId = Annotated[str, StringConstraints(pattern=PRINTABLE_ID)]
