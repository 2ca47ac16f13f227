"""What the scripted model reads of a chat request: enough to match rules and to answer by
default.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import orjson
from pydantic import JsonValue

_QUOTED = re.compile(r"<memories>.*?</memories>", re.DOTALL)


class BadRequestError(Exception):
    """The body is not a chat request; the text says why."""


@dataclass(frozen=True)
class Tool:
    """A tool that the request offers, with the JSON Schema of its arguments."""

    name: str
    parameters: JsonValue


class ChatRequest:
    """One chat completion request; `key` is the bearer key it came with, `number` counts from 1."""

    def __init__(self, body: bytes, *, key: str, number: int) -> None:
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequestError(f"the body is not JSON: {error}") from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("messages"), list):
            raise BadRequestError("the body must be an object with a list of messages")
        if not all(isinstance(message, dict) for message in parsed["messages"]):
            raise BadRequestError("each message must be an object")
        self.body: dict[str, JsonValue] = parsed
        self.messages: list[dict[str, JsonValue]] = parsed["messages"]
        self.key = key
        self.number = number
        self.size = len(body)
        self.stream = parsed.get("stream") is True
        self.model = str(parsed.get("model", "scripted"))
        options = parsed.get("stream_options")
        self.include_usage = isinstance(options, dict) and options.get("include_usage") is True

    @cached_property
    def last_user(self) -> str:
        """What the user last said, empty if nothing: without what they are quoted to have said
        before, which stands between <memories> tags.
        """
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return _QUOTED.sub("", text_of(message.get("content"))).strip()
        return ""

    @cached_property
    def system(self) -> str:
        """The texts of all system and developer messages."""
        found = (m for m in self.messages if m.get("role") in {"system", "developer"})
        return "\n".join(text_of(message.get("content")) for message in found)

    @cached_property
    def turn(self) -> int:
        """How many answers the model has given since the user last spoke."""
        count = 0
        for message in reversed(self.messages):
            if message.get("role") == "user":
                break
            count += message.get("role") == "assistant"
        return count

    @property
    def after_tool(self) -> bool:
        """Whether the last message is a tool's result."""
        return bool(self.messages) and self.messages[-1].get("role") == "tool"

    @cached_property
    def tools(self) -> list[Tool]:
        """The functions offered; entries of another form are passed over."""
        offered = self.body.get("tools")
        functions = (
            [t.get("function") for t in offered if isinstance(t, dict)]
            if isinstance(offered, list)
            else []
        )
        return [
            Tool(name=str(function["name"]), parameters=function.get("parameters", {}))
            for function in functions
            if isinstance(function, dict) and "name" in function
        ]

    def forced_tool(self) -> Tool | None:
        """Return the tool that `tool_choice` demands, unless its result has come already."""
        choice = self.body.get("tool_choice")
        if self.after_tool or not self.tools:
            return None
        if choice == "required":
            return self.tools[0]
        function = choice.get("function") if isinstance(choice, dict) else None
        if not isinstance(function, dict):
            return None
        return next((tool for tool in self.tools if tool.name == function.get("name")), None)

    @cached_property
    def json_schema(self) -> JsonValue | None:
        """The schema of the JSON that is asked for (an empty one for any object), None for plain
        text.
        """
        wanted = self.body.get("response_format")
        if not isinstance(wanted, dict):
            return None
        if wanted.get("type") == "json_object":
            return {}
        inner = wanted.get("json_schema") if wanted.get("type") == "json_schema" else None
        return inner.get("schema", {}) if isinstance(inner, dict) else None


def text_of(content: JsonValue) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
