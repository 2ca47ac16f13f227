"""What users write is read in the time of its length, however it is made: a worker has one loop for
all of its sessions."""

import time
from collections.abc import Callable
from functools import partial

import pytest

from agent_core.prompt import tagged
from shared.records import MAX_SAY, MAX_SOUL
from worker.companion import soul_of
from worker.memories import without_marks
from worker.story_prompts import quoted
from worker.story_words import exact

BLANKS = " " * (MAX_SAY - 2)


def companion(soul: str) -> str:
    return soul_of({"soul": soul, "name": "Ember"})


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (quoted, f"<{BLANKS}x"),
        (quoted, "<player" * (MAX_SAY // 8) + ">" * (MAX_SAY // 8)),
        (partial(exact, choices=["Go"]), f"1{BLANKS}x"),
        (without_marks, f"<{BLANKS}x"),
        (companion, f"<{BLANKS}x"),
        (companion, f"<soul{BLANKS}x"),
        (companion, "<soul" * (MAX_SOUL // 6) + ">" * (MAX_SOUL // 6)),
        (partial(tagged, "soul"), f"<{BLANKS}x"),
    ],
)
def test_words_that_could_be_read_in_many_ways(read: Callable[[str], object], words: str) -> None:
    began = time.process_time()
    for _ in range(5):
        read(words)
    assert time.process_time() - began < 1
