"""JSON in the one form that Postgres, Redis and browsers all take."""

import re
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import orjson

JsonObject: TypeAlias = dict[str, Any]
"""A decoded JSON object, at a border where its fields are not ours to know."""

_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def dumps(value: object, *, in_order: bool = False) -> bytes:
    """Encode as UTF-8 JSON.

    Models give NUL characters and halves of surrogate pairs now and then. jsonb refuses the
    first and UTF-8 the second, so both become U+FFFD instead of losing the whole message.
    Raises TypeError for what has no form in JSON.

    Args:
        in_order: have an object's members in the order of their names, however they came: equal
            values are then equal bytes.
    """
    option = orjson.OPT_SORT_KEYS if in_order else None
    try:
        encoded = orjson.dumps(value, option=option)
    except TypeError:
        encoded = orjson.dumps(_all_well_formed(value), option=option)
    if b"\\u0000" in encoded:
        return _NUL.sub(rb"\1\\ufffd", encoded)
    # What orjson gives keeps the buffer it was written into, 4 KB at the least. Whoever holds a
    # thousand messages holds copies.
    return bytes(memoryview(encoded))


def dumps_text(value: object) -> str:
    """The same as text, the form in which a jsonb parameter travels."""
    return dumps(value).decode()


def loads(data: bytes | str) -> Any:
    """Decode JSON; raises ValueError."""
    return orjson.loads(data)


def well_formed(text: str) -> str:
    """The text as UTF-8 can carry it: the two halves of a character are joined, a lone half
    becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _all_well_formed(value: object) -> object:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {_all_well_formed(key): _all_well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_well_formed(item) for item in value]
    if is_dataclass(value):
        return {one.name: _all_well_formed(getattr(value, one.name)) for one in fields(value)}
    return value
