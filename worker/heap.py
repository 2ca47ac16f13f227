"""The C heap of a worker (glibc's): what was freed in it is to go back to the machine."""

import contextlib
import ctypes

_ARENA_MAX = -8
"""`M_ARENA_MAX` of malloc.h."""

_ARENAS = 2


def few_arenas() -> None:
    """Have threads share heaps, from now on.

    Else each thread has one of its own, and keeps what the largest thing that it ever did took.
    What allocates here holds Python's lock anyhow.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give back what is free; takes some milliseconds without Python's lock."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
