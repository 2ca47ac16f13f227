"""The blocks a message is made of: text, thinking, images and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from agent_core.errors import MalformedDataError
from agent_core.fields import json_object, maybe, optional, require


@dataclass(slots=True)
class TextContent:
    """Plain text."""

    type: ClassVar[Literal["text"]] = "text"
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the block as JSON."""
        return {"type": "text", "text": self.text}


@dataclass(slots=True)
class ThinkingContent:
    """A model's reasoning; the signature is what some providers want back with it."""

    type: ClassVar[Literal["thinking"]] = "thinking"
    thinking: str
    signature: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the block as JSON."""
        data: dict[str, Any] = {"type": "thinking", "thinking": self.thinking}
        if self.signature is not None:
            data["signature"] = self.signature
        return data


@dataclass(slots=True)
class ImageContent:
    """An image: base64 `data` or a `url`, exactly one of them."""

    type: ClassVar[Literal["image"]] = "image"
    data: str | None = None
    mime_type: str = "image/png"
    url: str | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise MalformedDataError("an image has either data or a url")

    def to_dict(self) -> dict[str, Any]:
        """Return the block as JSON."""
        source = {"data": self.data} if self.url is None else {"url": self.url}
        return {"type": "image", **source, "mime_type": self.mime_type}


@dataclass(slots=True)
class ToolCall:
    """A model's wish to run a tool.

    `raw` is the text of the arguments as received, kept only where it is not a JSON object.
    """

    type: ClassVar[Literal["tool_call"]] = "tool_call"
    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the block as JSON."""
        data: dict[str, Any] = {
            "type": "tool_call",
            "id": self.id,
            "name": self.name,
            "arguments": self.arguments,
        }
        if self.raw is not None:
            data["raw"] = self.raw
        return data


UserContent: TypeAlias = TextContent | ImageContent
AssistantContent: TypeAlias = TextContent | ThinkingContent | ToolCall
Content: TypeAlias = TextContent | ThinkingContent | ImageContent | ToolCall


def content_from_dict(data: object) -> Content:
    """Read one block; raises MalformedDataError."""
    block = json_object(data, "a content block")
    kind = block.get("type")
    if kind == "text":
        return TextContent(require(block, "text", str))
    if kind == "thinking":
        return ThinkingContent(require(block, "thinking", str), maybe(block, "signature", str))
    if kind == "image":
        return ImageContent(
            maybe(block, "data", str),
            optional(block, "mime_type", str, "image/png"),
            maybe(block, "url", str),
        )
    if kind == "tool_call":
        return ToolCall(
            require(block, "id", str),
            require(block, "name", str),
            require(block, "arguments", dict),
            maybe(block, "raw", str),
        )
    raise MalformedDataError(f"unknown type of content: {kind!r}")


def user_content_from_dict(data: object) -> UserContent:
    """Read one block of a user's or a tool's message."""
    block = content_from_dict(data)
    if isinstance(block, (TextContent, ImageContent)):
        return block
    raise MalformedDataError(f"{block.type} has no place in a message of this role")


def assistant_content_from_dict(data: object) -> AssistantContent:
    """Read one block of an assistant's message."""
    block = content_from_dict(data)
    if isinstance(block, ImageContent):
        raise MalformedDataError("image has no place in a message of this role")
    return block


def plain_text(content: str | list[UserContent] | list[AssistantContent]) -> str:
    """Join the text blocks; images, thinking and tool calls are left out."""
    if isinstance(content, str):
        return content
    return "".join(block.text for block in content if isinstance(block, TextContent))
