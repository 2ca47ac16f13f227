"""What the scripted model says when nobody told it what to say: plausible, short, the same for
the same request.
"""

import json
import zlib
from collections.abc import Iterator

from pydantic import JsonValue

from deploy.models.request import ChatRequest
from deploy.models.script import Reply, ToolCall

_OPENINGS = (
    "The room grows quiet for a moment.",
    "A log shifts in the fire and sparks climb the chimney.",
    "Rain ticks against the window while you wait.",
    "Somewhere outside, an owl calls twice and stops.",
    "The lamp flickers, then burns steady again.",
)
_QUOTES = (
    'Your words hang in the air: "{quote}"',
    '"{quote}" - the sentence is weighed with care before an answer comes.',
    'You said: "{quote}" It is heard, and not forgotten.',
)
_CLOSINGS = (
    "What do you do next?",
    "The evening is still long; the choice is yours.",
    "There is more to find here, if you look for it.",
    "The path ahead is open.",
)
_QUOTED = 200  # characters
_DEPTH = 24  # levels of a schema; one that refers to itself would have no end


def default_reply(request: ChatRequest) -> Reply:
    """Answer from the request alone: a forced tool call, the JSON that is asked for, or a few
    sentences.
    """
    if (tool := request.forced_tool()) is not None:
        arguments = minimal(tool.parameters)
        return Reply(
            tool_calls=[
                ToolCall(name=tool.name, arguments=arguments if isinstance(arguments, dict) else {})
            ]
        )
    if request.json_schema is not None:
        return Reply(text=_compact(minimal(request.json_schema, said=request.last_user)))
    return Reply(text=narration(request.last_user))


def narration(said: str) -> str:
    """Return three sentences, chosen by what was said, that quote it."""
    number = zlib.crc32(said.encode())
    opening = _OPENINGS[number % len(_OPENINGS)]
    closing = _CLOSINGS[number // 7 % len(_CLOSINGS)]
    quote = " ".join(said.split())
    if len(quote) > _QUOTED:
        quote = quote[:_QUOTED].rstrip() + "..."
    if not quote:
        return f"{opening} {closing}"
    return f"{opening} {_QUOTES[number // 3 % len(_QUOTES)].format(quote=quote)} {closing}"


def minimal(schema: JsonValue, *, said: str = "") -> JsonValue:
    """Return a small value that a JSON Schema accepts, for the keywords that models are usually
    given.

    Free strings quote `said`, if given, so that a story's text field reads like a story.
    """
    return _Minimal(schema, said).value(schema, depth=0)


class _Minimal:
    """One walk through a schema; `root` is where its references point into."""

    def __init__(self, root: JsonValue, said: str) -> None:
        self.root = root
        self.said = said

    def value(self, schema: JsonValue, *, depth: int) -> JsonValue:
        if not isinstance(schema, dict) or depth > _DEPTH:
            return None if depth > _DEPTH else {}
        if isinstance(reference := schema.get("$ref"), str):
            return self.value(self._find(reference), depth=depth + 1)
        for keyword in ("const", "default"):
            if keyword in schema:
                return schema[keyword]
        if isinstance(allowed := schema.get("enum"), list) and allowed:
            return allowed[0]
        for keyword in ("anyOf", "oneOf", "allOf"):
            options = schema.get(keyword)
            if isinstance(options, list) and options:
                return self._combined(keyword, options, depth)
        return self._of_type(schema, depth)

    def _combined(self, keyword: str, options: list[JsonValue], depth: int) -> JsonValue:
        if keyword != "allOf":
            return self.value(options[0], depth=depth + 1)
        values = [self.value(option, depth=depth + 1) for option in options]
        merged: dict[str, JsonValue] = {}
        for value in values:
            if not isinstance(value, dict):
                return value
            merged |= value
        return merged

    def _of_type(self, schema: dict[str, JsonValue], depth: int) -> JsonValue:
        kind = schema.get("type", "object" if "properties" in schema else None)
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema)
            case "boolean":
                return False
            case "null":
                return None
            case "array":
                least = schema.get("minItems", 0)
                count = least if isinstance(least, int) else 0
                return [self.value(schema.get("items", {}), depth=depth + 1) for _ in range(count)]
            case _:
                return dict(self._properties(schema, depth))

    def _properties(
        self, schema: dict[str, JsonValue], depth: int
    ) -> Iterator[tuple[str, JsonValue]]:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, dict):
            return
        for name, inner in properties.items():
            if isinstance(required, list) and name in required:
                yield name, self.value(inner, depth=depth + 1)

    def _string(self, schema: dict[str, JsonValue]) -> str:
        text = narration(self.said) if self.said else "x"
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if isinstance(least, int) and len(text) < least:
            text = text.ljust(least, "x")
        return text[:most] if isinstance(most, int) else text

    def _number(self, schema: dict[str, JsonValue]) -> int | float:
        for keyword, step in (
            ("minimum", 0),
            ("exclusiveMinimum", 1),
            ("maximum", 0),
            ("exclusiveMaximum", -1),
        ):
            bound = schema.get(keyword)
            if isinstance(bound, int | float) and not isinstance(bound, bool):
                return bound + step
        return 0

    def _find(self, reference: str) -> JsonValue:
        found = self.root
        for part in reference.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) and name else found
        return found


def _compact(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
