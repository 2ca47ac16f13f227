"""How an agent changes the soul of its character: by a tool, with the end of its task.

The tool itself changes nothing. What came of its calls stands in the run's messages, also where
an earlier attempt made them, and goes into the soul in the transaction that ends the task.
"""

from collections.abc import Sequence

from agent_core import AgentTool, AgentToolResult, Message, ToolResultMessage, tool
from shared.errors import Refused
from shared.records import SoulEdit
from shared.souls import merged

UPDATE_SOUL = "update_soul"


def soul_tool(soul: str) -> AgentTool:
    """The tool for an agent whose character has this soul."""

    @tool(name=UPDATE_SOUL, effect="state")
    async def update_soul(section: str, text: str) -> AgentToolResult:
        """Change a section of your soul, which says who you are in every later conversation.

        Only for what is to last about yourself: a name you were given, a trait, a promise, how
        you speak. `section` is a short heading; `text` is all that will stand under it, and an
        empty text takes the section out. Other sections stay as they are.
        """
        edit = SoulEdit(section, text)
        try:
            merged(soul, [edit])
        except Refused as error:
            return AgentToolResult.error(str(error))
        return AgentToolResult.text(
            "Kept for your later conversations.", details={"section": section, "text": text}
        )

    return update_soul


def edits_in(messages: Sequence[Message]) -> list[SoulEdit]:
    """What the calls of a run have changed, in their order."""
    return [
        SoulEdit(message.details["section"], message.details["text"])
        for message in messages
        if isinstance(message, ToolResultMessage)
        and message.tool_name == UPDATE_SOUL
        and not message.is_error
    ]
