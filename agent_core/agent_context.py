"""What a run begins with: the part of it that hooks are given, too."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_core.messages import Message
from agent_core.tools import AgentTool


@dataclass(slots=True)
class AgentContext:
    """What a run begins with. The run works on a copy of the list of messages."""

    system_prompt: str = ""
    messages: list[Message] = field(default_factory=list)
    tools: list[AgentTool] = field(default_factory=list)
