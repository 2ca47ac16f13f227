"""What a tool gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent_core.content import ImageContent, TextContent, UserContent, user_content_from_dict
from agent_core.fields import items, json_object, optional


@dataclass(slots=True)
class AgentToolResult:
    """A tool's result.

    `content` is for the model (a bare string becomes one text block), `details` is JSON for
    programs. When every call of a batch says `terminate`, the model is not asked again.
    """

    content: list[UserContent]
    details: Any = None
    is_error: bool = False
    terminate: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            self.content = [TextContent(self.content)]

    @classmethod
    def text(cls, text: str, *, details: Any = None) -> AgentToolResult:
        """Return a result of one text block."""
        return cls([TextContent(text)], details)

    @classmethod
    def error(cls, text: str) -> AgentToolResult:
        """Return a result that tells the model what went wrong."""
        return cls([TextContent(text)], is_error=True)

    def is_well_formed(self) -> bool:
        """Whether the content is a list of text and image blocks: tools are other people's."""
        content: object = self.content
        return isinstance(content, list) and all(map(_is_well_formed, content))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        data: dict[str, Any] = {"content": [block.to_dict() for block in self.content]}
        if self.details is not None:
            data["details"] = self.details
        if self.is_error:
            data["is_error"] = True
        if self.terminate:
            data["terminate"] = True
        return data

    @classmethod
    def from_dict(cls, data: object) -> AgentToolResult:
        """Read a result; raises MalformedDataError."""
        fields = json_object(data, "a tool result")
        return cls(
            items(fields, "content", user_content_from_dict),
            fields.get("details"),
            optional(fields, "is_error", bool, default=False),
            optional(fields, "terminate", bool, default=False),
        )


def _is_well_formed(block: object) -> bool:
    """Whether a block can be stored and read again; one that can't would cost the transcript."""
    fields: tuple[object, ...] = ()
    if isinstance(block, TextContent):
        fields = (block.text,)
    elif isinstance(block, ImageContent):
        fields = (block.data if block.url is None else block.url, block.mime_type)
    return bool(fields) and all(isinstance(field, str) for field in fields)
