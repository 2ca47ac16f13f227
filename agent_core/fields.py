"""Reading JSON objects that come from outside: each field is checked, errors name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from agent_core.errors import MalformedDataError

T = TypeVar("T")

JsonObject = Mapping[str, Any]
"""A decoded JSON object."""

_MISSING = object()


def json_object(data: object, what: str) -> JsonObject:
    """Return `data` if it is a JSON object."""
    if not isinstance(data, Mapping):
        raise MalformedDataError(f"{what} must be an object, not {type(data).__name__}")
    return data


def require(data: JsonObject, name: str, kind: type[T]) -> T:
    """Return `data[name]`, which must be there and of that kind."""
    value = data.get(name, _MISSING)
    if value is _MISSING:
        raise MalformedDataError(f"field {name!r} is missing")
    return _of_kind(value, name, kind)


def optional(data: JsonObject, name: str, kind: type[T], default: T) -> T:
    """Return `data[name]`, or the default where it is absent or null."""
    value = data.get(name)
    return default if value is None else _of_kind(value, name, kind)


def maybe(data: JsonObject, name: str, kind: type[T]) -> T | None:
    """Return `data[name]`, or None where it is absent or null."""
    value = data.get(name)
    return None if value is None else _of_kind(value, name, kind)


def one_of(data: JsonObject, name: str, values: tuple[T, ...], default: T | None = None) -> T:
    """Return `data[name]`, which must be one of those values."""
    value = data.get(name, default)
    for allowed in values:
        if value == allowed:
            return allowed
    raise MalformedDataError(f"field {name!r} must be one of {', '.join(map(str, values))}")


def items(data: JsonObject, name: str, read: Callable[[Any], T]) -> list[T]:
    """Return the list `data[name]`, each item read by `read`."""
    return [read(item) for item in require(data, name, list)]


def number(data: JsonObject, name: str, default: float | None = None) -> float:
    """Return the number `data[name]`, or the default where it is absent or null."""
    value = data.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedDataError(f"field {name!r} must be a number")
    return value


def _of_kind(value: object, name: str, kind: type[T]) -> T:
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, kind):
        raise MalformedDataError(
            f"field {name!r} must be {kind.__name__}, not {type(value).__name__}"
        )
    return value
