"""Building what a model is told before the conversation, in bytes that providers can cache.

What changes least comes first: identity, skills, soul, preferences, summary, task. The parts
that change with every message (retrieved memories) do not belong into the system prompt;
`with_memories` puts them right before the newest message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent_core.content import TextContent
from agent_core.messages import Message, UserMessage


@dataclass(slots=True)
class PromptBuilder:
    """The parts of a system prompt; empty ones are left out.

    `identity` is who the agent is and how it works, written by the developer. Everything else
    may hold the words of users, so each part stands between tags of its own, which it cannot
    close.
    """

    identity: str = ""
    skills: str = ""
    soul: str = ""
    preferences: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    task: str = ""

    def build(self) -> str:
        """Return the system prompt; the same parts always give the same bytes."""
        preferences = "\n".join(
            f"- {name}: {value}" for name, value in sorted(self.preferences.items())
        )
        parts = [
            self.identity.strip(),
            tagged("skills", self.skills),
            tagged("soul", self.soul),
            tagged("preferences", preferences),
            tagged("summary", self.summary),
            tagged("task", self.task),
        ]
        return "\n\n".join(part for part in parts if part)


def tagged(tag: str, text: str) -> str:
    """Return the text between tags, an empty string for an empty text."""
    text = text.strip()
    if not text:
        return ""
    # The tag of this part, opened or closed inside it, would end it for the model.
    harmless = re.sub(rf"<(\s*+/?\s*+{tag})\b", r"&lt;\1", text, flags=re.IGNORECASE)
    return f"<{tag}>\n{harmless}\n</{tag}>"


def with_memories(messages: Sequence[Message], memories: Sequence[str]) -> list[Message]:
    """Return the messages with memories before the newest words of the user.

    The messages themselves are not changed: use it in `transform_context`.
    """
    listed = tagged("memories", "\n".join(f"- {memory}" for memory in memories))
    changed = list(messages)
    for at in range(len(changed) - 1, -1, -1):
        message = changed[at]
        if listed and isinstance(message, UserMessage):
            said = message.content
            blocks = [TextContent(said)] if isinstance(said, str) else said
            changed[at] = UserMessage([TextContent(f"{listed}\n\n"), *blocks], message.timestamp)
            break
    return changed
