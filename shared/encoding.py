"""JSON in the one form that Postgres, Redis and browsers all take."""

import re
from typing import Any, TypeAlias

import orjson

JsonObject: TypeAlias = dict[str, Any]
"""A decoded JSON object, at a border where its fields are not ours to know."""

_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def dumps(value: object) -> bytes:
    """Encode as UTF-8 JSON.

    Models give NUL characters and halves of surrogate pairs now and then. jsonb refuses the
    first and UTF-8 the second, so both become U+FFFD instead of losing the whole message.
    """
    try:
        encoded = orjson.dumps(value)
    except TypeError:
        encoded = orjson.dumps(_well_formed(value))
    return _NUL.sub(rb"\1\\ufffd", encoded) if b"\\u0000" in encoded else encoded


def dumps_text(value: object) -> str:
    """The same as text, the form in which a jsonb parameter travels."""
    return dumps(value).decode()


def loads(data: bytes | str) -> Any:
    """Decode JSON; raises ValueError."""
    return orjson.loads(data)


def _well_formed(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(item) for item in value]
    return value
