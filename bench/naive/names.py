"""What the gateway and the worker call the same."""

ANSWER = "answer"


def channel(chat: str) -> str:
    """Where the pieces of a chat's answers are published."""
    return f"chat:{chat}"
