"""Checking a JSON value against a JSON schema, with the corrections that models need.

Models write `"5"` for 5, `"[1]"` for [1] and 5.0 for 5. A value that fits as it is stays as it
is; otherwise such slips are corrected, and what still does not fit is reported by its path.
Known are the keywords that tool schemas use: type, properties, patternProperties, required,
additionalProperties, prefixItems, items, enum, const, anyOf, oneOf, allOf, $ref within the
document, and the limits on numbers, lengths and patterns. Other keywords are not checked, nor
patterns that can't be read here. Numbers are finite, as JSON's are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Schema = Mapping[str, Any]

# Far deeper than any tool's schema; ends a $ref that refers to itself.
_MAX_DEPTH = 64

# Branches that are told apart by nothing near are tried within each other: their number grows with
# every level. A long value may have more visits, for each of its parts.
_MAX_VISITS = 10_000
_MAX_VISITS_OF_A_PART = 8


def fit(value: Any, schema: Schema) -> tuple[Any, list[str]]:
    """Return the value as the schema wants it, and what is wrong with it, a line each."""
    visits = max(_MAX_VISITS, _MAX_VISITS_OF_A_PART * _parts(value))
    try:
        strict = _Fitter(schema, _Budget(visits), coerce=False)
        fitted = strict.visit(value, schema, "", 0)
        if not strict.problems:
            return fitted, []
        lenient = _Fitter(schema, _Budget(visits), coerce=True)
        fitted = lenient.visit(value, schema, "", 0)
    except _TooComplexError:
        return value, ["root: is too complex to be checked"]
    return fitted, lenient.problems


def _parts(value: Any) -> int:
    """How many values there are in a value, with those that its texts may hold."""
    parts, left = 0, [value]
    while left:
        part = left.pop()
        parts += 1
        if isinstance(part, str):
            parts += len(part) // 2 if part.lstrip()[:1] in {"[", "{"} else 0
        elif isinstance(part, (dict, list)):
            left += part.values() if isinstance(part, dict) else part
    return parts


class _TooComplexError(Exception):
    """The budget of visits is spent."""


class _Budget:
    """The visits that a fitter has, together with those that it tries branches with."""

    __slots__ = ("_left",)

    def __init__(self, visits: int) -> None:
        self._left = visits

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooComplexError


class _Fitter:
    def __init__(self, root: Schema, budget: _Budget, *, coerce: bool) -> None:
        self._root = root
        self._budget = budget
        self._coerce = coerce
        self.problems: list[str] = []

    def visit(self, value: Any, schema: object, path: str, depth: int) -> Any:
        self._budget.spend()
        if depth > _MAX_DEPTH:
            return self._problem(path, "is nested too deeply", value)
        if _is_endless(value):
            return self._problem(path, "must be a finite number", value)
        if schema is False:
            return self._problem(path, "is not allowed", value)
        if not isinstance(schema, Mapping):
            return value
        if "$ref" in schema:
            value = self.visit(value, self._resolve(schema["$ref"]), path, depth + 1)
        for part in schema.get("allOf", ()):
            value = self.visit(value, part, path, depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                value = self._visit_any(value, schema[keyword], path, depth)
        value = self._typed(value, schema, path)
        self._check_limits(value, schema, path)
        if isinstance(value, dict):
            return self._visit_object(value, schema, path, depth)
        if isinstance(value, list):
            return self._visit_array(value, schema, path, depth)
        return value

    def _visit_any(self, value: Any, branches: list[Schema], path: str, depth: int) -> Any:
        for coerce in (False, True) if self._coerce else (False,):
            for branch in branches:
                attempt = _Fitter(self._root, self._budget, coerce=coerce)
                if attempt.fails_at_once(value, branch):
                    continue
                fitted = attempt.visit(value, branch, path, depth + 1)
                if not attempt.problems:
                    return fitted
        return self._problem(path, "must match one of the allowed forms", value)

    def fails_at_once(self, value: Any, schema: object) -> bool:
        """Whether a value can't fit, by what is seen of it and its properties from outside.

        Without this a branch would be told from its neighbours only after all within it.
        """
        self._budget.spend()
        schema, value = self._glance(value, schema)
        if isinstance(schema, Mapping) and isinstance(value, dict):
            properties = schema.get("properties", {})
            if any(name not in value for name in schema.get("required", ())):
                return True
            for name, wanted in properties.items():
                if self.problems:
                    break
                if name in value:
                    self._glance(value[name], wanted)
        return bool(self.problems)

    def _glance(self, value: Any, schema: object) -> tuple[object, Any]:
        """Check a value, but nothing in it: what the schema refers to, and the value it wants.

        The schema is None where others have to be asked, which may mend the value first.
        """
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            schema = self._resolve(schema["$ref"])
        if not isinstance(schema, Mapping) or not _ASKS_OTHERS.isdisjoint(schema):
            return None, value
        value = self._typed(value, schema, "")
        self._check_limits(value, schema, "")
        return schema, value

    def _visit_object(self, value: Any, schema: Schema, path: str, depth: int) -> Any:
        for name in schema.get("required", ()):
            if name not in value:
                self._problem(_join(path, name), f"must have required property '{name}'")
        fitted = {}
        for name, item in value.items():
            parts = _parts_for(name, schema)
            if False in parts:
                self._problem(_join(path, name), "is not a known property")
                continue
            fitted[name] = item
            for wanted in parts:
                fitted[name] = self.visit(fitted[name], wanted, _join(path, name), depth + 1)
        return fitted

    def _visit_array(self, value: list[Any], schema: Schema, path: str, depth: int) -> list[Any]:
        first, rest = schema.get("prefixItems", ()), schema.get("items", True)
        return [
            self.visit(item, first[at] if at < len(first) else rest, f"{path}[{at}]", depth + 1)
            for at, item in enumerate(value)
        ]

    def _typed(self, value: Any, schema: Schema, path: str) -> Any:
        kinds = schema.get("type")
        if kinds is None:
            return value
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        if any(_is(value, kind) for kind in kinds):
            return value
        if self._coerce:
            for kind in kinds:
                try:
                    return _COERCIONS[kind](value)
                except (KeyError, TypeError, ValueError, RecursionError, OverflowError):
                    continue
        return self._problem(path, f"must be {' or '.join(kinds)}", value)

    def _check_limits(self, value: Any, schema: Schema, path: str) -> None:
        if "enum" in schema and value not in schema["enum"]:
            choices = ", ".join(json.dumps(choice) for choice in schema["enum"])
            self._problem(path, f"must be one of {choices}")
        if "const" in schema and value != schema["const"]:
            self._problem(path, f"must be {json.dumps(schema['const'])}")
        for keyword, fails, text in _LIMITS:
            if keyword in schema and fails(value, schema[keyword]):
                self._problem(path, f"{text} {schema[keyword]}")

    def _resolve(self, reference: object) -> object:
        node: Any = self._root
        for part in str(reference).removeprefix("#").strip("/").split("/"):
            if part:
                key = part.replace("~1", "/").replace("~0", "~")
                if isinstance(node, list):
                    node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
                else:
                    node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def _problem(self, path: str, text: str, value: Any = None) -> Any:
        self.problems.append(f"{path or 'root'}: {text}")
        return value


_ASKS_OTHERS = frozenset({"$ref", "allOf", "anyOf", "oneOf"})


def _parts_for(name: str, schema: Schema) -> list[object]:
    """What a schema wants of the property of that name: all of it applies."""
    properties = schema.get("properties", {})
    parts = [properties[name]] if name in properties else []
    for pattern, wanted in schema.get("patternProperties", {}).items():
        if not _misses_pattern(name, pattern):
            parts.append(wanted)
    return parts or [schema.get("additionalProperties", True)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


_TYPES: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def _is(value: object, kind: str) -> bool:
    test = _TYPES.get(kind)
    return test is not None and test(value)


def _to_string(value: object) -> str:
    if _is_number(value) or isinstance(value, bool):
        return json.dumps(value)
    raise TypeError


def _to_number(value: object) -> float:
    if not isinstance(value, str):
        raise TypeError
    number = json.loads(value)
    if not _is_number(number) or _is_endless(number):
        raise TypeError
    return float(number) if isinstance(number, float) else int(number)


def _to_integer(value: object) -> int:
    number = value if isinstance(value, float) else _to_number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _to_boolean(value: object) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise TypeError


def _to_null(value: object) -> None:
    if value not in {"null", ""}:
        raise TypeError


def _parsed(kind: type) -> Callable[[object], Any]:
    def parse(value: object) -> Any:
        parsed = json.loads(value) if isinstance(value, str) else None
        if isinstance(parsed, kind):
            return parsed
        raise TypeError

    return parse


_COERCIONS: dict[str, Callable[[object], Any]] = {
    "string": _to_string,
    "number": _to_number,
    "integer": _to_integer,
    "boolean": _to_boolean,
    "null": _to_null,
    "object": _parsed(dict),
    "array": _parsed(list),
}


def _misses_pattern(value: object, pattern: object) -> bool:
    if not isinstance(value, str) or not isinstance(pattern, str):
        return False
    is_in = _search(pattern)
    return is_in is not None and not is_in(value)


@lru_cache(maxsize=256)
def _search(pattern: str) -> Callable[[str], object] | None:
    """What looks for a pattern in a text, None where nobody here can read the pattern.

    Rust's expressions are nearer to those of JSON schemas, and never take time without end; but
    they do not look ahead.
    """
    from pydantic_core import SchemaError, SchemaValidator  # noqa: PLC0415 - heavy

    try:
        return SchemaValidator({"type": "str", "pattern": pattern}).isinstance_python
    except SchemaError:
        pass
    try:
        return re.compile(pattern).search
    except (re.error, OverflowError, RecursionError):
        return None


def _number_limit(fails: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    # Old schemas have `exclusiveMinimum: true`, which is no limit of its own.
    return lambda value, limit: _is_number(value) and _is_number(limit) and fails(value, limit)


_LIMITS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("minimum", _number_limit(lambda value, limit: value < limit), "must be >="),
    ("maximum", _number_limit(lambda value, limit: value > limit), "must be <="),
    ("exclusiveMinimum", _number_limit(lambda value, limit: value <= limit), "must be >"),
    ("exclusiveMaximum", _number_limit(lambda value, limit: value >= limit), "must be <"),
    ("minLength", lambda v, n: isinstance(v, str) and len(v) < n, "must have a length of at least"),
    ("maxLength", lambda v, n: isinstance(v, str) and len(v) > n, "must have a length of at most"),
    ("minItems", lambda v, n: isinstance(v, list) and len(v) < n, "must have items, at least"),
    ("maxItems", lambda v, n: isinstance(v, list) and len(v) > n, "must have items, at most"),
    ("pattern", _misses_pattern, "must match pattern"),
)
