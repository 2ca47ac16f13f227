"""Levels of the hint queue: whose turn it is where slots are scarce.

A hint waits on the list of its level; workers take from the first level that has one. A user's
first waiting session is hinted on the first level, the second one on the next, then two, four,
eight and so on share a level: whoever queues a thousand sessions stands behind the first of
everyone else. Background work has the last level to itself.
"""

LEVELS = 10
"""As many as AMQP and kombu know priorities: 0 to 9."""

FIRST = 0
BACKGROUND = LEVELS - 1
CROWD = BACKGROUND - 1
"""The last level of those who wait for an answer."""

CHORE = 2
"""The priority of sessions that no user made: they run in the background, and no user is told of
them or has them counted."""

COUNTED = 2 ** (CROWD - 1)
"""How far it pays to count what is before a session: further ones share a level."""

SEPARATOR = "\x06\x16"
"""What kombu's Redis transport puts between a queue's name and a level."""


def level_of(before: int, priority: int = 0) -> int:
    """The level of a session.

    Args:
        before: what the user has running or waiting before it.
        priority: 0 where somebody waits for the answer, 1 in the background.
    """
    return BACKGROUND if priority > 0 else min(max(before, 0).bit_length(), CROWD)


def key_of(queue: str, level: int) -> str:
    """The Redis list of a level, as kombu names it."""
    return f"{queue}{SEPARATOR}{level}" if level else queue


def as_level(value: object) -> int:
    """A level out of a message that anyone may have written; the first one where it is none."""
    return value if type(value) is int and FIRST <= value < LEVELS else FIRST
