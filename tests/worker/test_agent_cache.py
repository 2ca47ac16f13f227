"""What a worker holds of sessions: what a task sees of it, what goes first, how much it takes."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest

from agent_core import AssistantMessage, MalformedDataError, TextContent, UserMessage
from shared.encoding import JsonObject
from shared.records import Claim, KnownBranch
from shared.store.held_memories import HeldMemories
from tests.worker import attempts
from worker.agent_cache import AgentCache, size_of
from worker.transcript import HISTORY_MESSAGES, History, Transcript, transcript_of


def said(text: str) -> JsonObject:
    return UserMessage(text, timestamp=1).to_dict()


def answered(text: str) -> JsonObject:
    return AssistantMessage([TextContent(text)], timestamp=1).to_dict()


def claim(
    *messages: JsonObject, head: int | None, after: int | None = None, generation: int = 1
) -> Claim:
    return replace(
        attempts.claim(),
        messages=messages,
        head_message=head,
        next_message=(head or 0) + 1,
        after=after,
        generation=generation,
    )


def texts(transcript: Transcript) -> list[object]:
    return [one.content for one in transcript.history if isinstance(one, UserMessage)]


def transcript(head: int, characters: int = 10) -> Transcript:
    return Transcript(KnownBranch(1, head), (b"x" * characters,))


NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def cache(
    most: int = 9, most_bytes: int = 1 << 20, clock: Callable[[], float] | None = None
) -> AgentCache:
    return AgentCache(
        most=most, most_bytes=most_bytes, idle_seconds=60, clock=clock or (lambda: 0.0)
    )


ONE, TWO, THREE = (UUID(int=number) for number in (1, 2, 3))


def test_what_a_task_committed_stands_behind_what_it_was_given() -> None:
    first = transcript_of(claim(head=None), None)
    assert first == Transcript(None, ())

    second = first.ended(claim(head=None), [said("a"), said("b")])
    assert second.known == KnownBranch(1, 2)
    third = transcript_of(claim(head=2, after=2), second).ended(claim(head=2), [said("c")])

    assert (third.known, texts(third)) == (KnownBranch(1, 3), ["a", "b", "c"])
    assert third == transcript_of(claim(said("a"), said("b"), said("c"), head=3), None)


def test_a_task_that_says_nothing_leaves_what_was_there() -> None:
    held = transcript_of(claim(said("a"), head=1), None)

    assert held.ended(claim(head=1), []) is held


@pytest.mark.parametrize("after", [None, 1])
def test_what_is_held_counts_only_where_the_claim_went_on_from_it(after: int | None) -> None:
    held = transcript_of(claim(said("old"), head=2), None)

    assert texts(transcript_of(claim(said("new"), head=4, after=after), held)) == ["new"]
    assert texts(transcript_of(claim(said("new"), head=4, after=2), held)) == ["old", "new"]


def test_no_more_is_held_than_a_claim_would_read() -> None:
    many = [said(str(number)) for number in range(HISTORY_MESSAGES + 5)]
    head = len(many)
    held = transcript_of(claim(*many[:-1], head=head - 1), None).ended(
        claim(head=head - 1), many[-1:]
    )

    assert held == transcript_of(claim(*many[-HISTORY_MESSAGES:], head=head), None)


def test_equal_messages_are_equal_bytes() -> None:
    """However their members come: Postgres gives them in an order of its own."""
    one = transcript_of(claim({"role": "note", "details": {"b": 1, "a": 2}}, head=1), None)
    other = transcript_of(claim({"details": {"a": 2, "b": 1}, "role": "note"}, head=1), None)

    assert one == other


def test_a_task_that_changes_its_history_changes_nobody_elses() -> None:
    held = transcript_of(claim(said("a"), answered("b"), head=2), None)
    mine = held.history
    asked, answer = mine
    assert isinstance(asked, UserMessage)
    assert isinstance(answer, AssistantMessage)
    asked.content = "changed"
    answer.content.clear()

    assert (mine[0], mine[1]) == (asked, answer)
    assert list(held.history) == [
        UserMessage("a", timestamp=1),
        AssistantMessage([TextContent("b")], timestamp=1),
    ]


def test_a_history_is_a_sequence() -> None:
    history = transcript_of(claim(*(said(str(n)) for n in range(5)), head=5), None).history

    assert [one.content for one in history[1:4:2]] == ["1", "3"]
    assert [one.content for one in reversed(history)][:2] == ["4", "3"]
    assert history[-1] is history[4]
    assert (len(history), len(history[5:]), list(history[3:][1:])) == (5, 0, [history[4]])
    with pytest.raises(IndexError):
        history[5]


def test_a_message_that_can_t_be_read_harms_only_who_reads_it() -> None:
    history = History([b'{"role": "user"}', b'{"role": "user", "content": "a", "timestamp": 1}'])

    assert history[1] == UserMessage("a", timestamp=1)
    with pytest.raises(MalformedDataError):
        history[0]


def test_the_least_recently_used_goes_first() -> None:
    kept = cache(most=2)
    for one in (ONE, TWO):
        kept.keep(one, transcript(1))
    taken = kept.take(ONE)
    assert taken is not None
    kept.keep(ONE, taken)
    kept.keep(THREE, transcript(1))

    assert [kept.take(one) is not None for one in (ONE, TWO, THREE)] == [True, False, True]
    assert kept.counts == {"evicted_count": 1}


def test_what_is_taken_out_is_held_no_longer() -> None:
    kept = cache()
    kept.keep(ONE, transcript(1))

    assert kept.take(ONE) == transcript(1)
    assert kept.take(ONE) is None
    assert (len(kept), kept.bytes) == (0, 0)


def test_bytes_are_bounded_and_counted() -> None:
    large = transcript(1, 1000)
    kept = cache(most=99, most_bytes=9 * size_of(large))
    for number in range(12):
        kept.keep(UUID(int=number), large)
    kept.keep(UUID(int=11), transcript(2, 10))

    assert len(kept) == 9
    assert kept.bytes == 8 * size_of(large) + size_of(transcript(2, 10))
    assert kept.counts == {"evicted_bytes": 3}


def test_one_session_does_not_drive_out_all_others() -> None:
    kept = cache(most_bytes=20_000)
    kept.keep(ONE, transcript(1))
    kept.keep(TWO, transcript(1, 19_000))

    assert (kept.take(TWO), kept.take(ONE)) == (None, transcript(1))


def test_what_nobody_uses_goes() -> None:
    clock = Clock()
    kept = cache(clock=clock)
    kept.keep(ONE, transcript(1))
    clock.now += 40
    kept.keep(TWO, transcript(1))
    clock.now += 40
    kept.drop_idle()

    assert (len(kept), kept.counts) == (1, {"evicted_idle": 1})
    assert kept.take(TWO) is not None


def test_under_want_of_memory_half_of_it_goes() -> None:
    kept = cache()
    for number in range(4):
        kept.keep(UUID(int=number), transcript(1, 1000))
    kept.shrink()

    assert len(kept) == 2
    assert kept.take(UUID(int=3)) is not None


@pytest.mark.parametrize(("most", "most_bytes"), [(0, 1 << 20), (9, 0)])
def test_a_cache_without_room_holds_nothing(most: int, most_bytes: int) -> None:
    kept = cache(most=most, most_bytes=most_bytes)
    kept.keep(ONE, transcript(1))

    assert (kept.take(ONE), len(kept), kept.holds_any) == (None, 0, False)


def test_a_session_without_messages_is_not_held() -> None:
    kept = cache()
    kept.keep(ONE, Transcript(None))

    assert len(kept) == 0


def test_a_claim_counts_as_what_it_made_of_an_entry() -> None:
    kept, held = cache(), transcript(3)
    kept.count(None, after=None, read=4)
    kept.count(held, after=None, read=4)
    kept.count(held, after=3, read=2)
    kept.count(held, after=3, read=0)

    assert kept.counts == {"miss": 2, "part": 1, "hit": 1}


def memories_of(*words: str, since: datetime | None = NOW) -> HeldMemories:
    """Held memories as a recall has read them."""
    held, count = HeldMemories(), len(words)
    keys = [number.to_bytes(16) for number in range(count)]
    columns: list[Sequence[Any]] = [
        *(keys, [str(UUID(bytes=key)) for key in keys], ["fact"] * count),
        *([0] * count, [0] * count, [""] * count, [""] * count, words),
        *([0.0] * count, [NOW] * count, ["\n".join(one.split()) for one in words]),
    ]
    held.take(since, NOW, columns)
    return held


def test_memories_are_taken_out_and_put_back() -> None:
    held = cache()
    held.keep_memories(ONE, memories_of("a lamp", "a letter"))
    size = held.bytes

    taken = held.take_memories(ONE)
    assert (taken.since, held.bytes) == (NOW, 0)
    assert held.take_memories(ONE).since is None, "taken out while they are read"
    held.keep_memories(ONE, taken)
    held.keep_memories(ONE, taken)
    assert (held.bytes, len(held)) == (size, 0)


def test_memories_drive_out_no_more_than_half_of_the_sessions() -> None:
    full = cache(most=99, most_bytes=40_000)
    sessions = [UUID(int=number) for number in range(50)]
    for one in sessions:
        full.keep(one, transcript(1, 100))
    assert len(full) == 50
    for one in sessions:
        full.keep_memories(one, memories_of("lamp" * 450))

    assert full.bytes <= 40_000
    assert 20 <= len(full) <= 30
    assert full.take(sessions[0]) is None, "the least recently used goes"
    assert full.take(sessions[-1]) is not None
    assert full.take_memories(sessions[0]).since is None
    assert full.take_memories(sessions[-1]).since == NOW


def test_memories_have_what_sessions_leave_and_give_it_back() -> None:
    full = cache(most=99, most_bytes=40_000)
    characters = [UUID(int=number) for number in range(20)]
    for one in characters:
        full.keep_memories(one, memories_of("lamp" * 450))
    assert 30_000 < full.bytes <= 40_000
    for number in range(100, 150):
        full.keep(UUID(int=number), transcript(1, 100))

    assert full.bytes <= 40_000
    assert 20 <= len(full) <= 30
    assert full.take_memories(characters[0]).since is None, "the least recently used goes"
    assert full.take_memories(characters[-1]).since == NOW
    for one in characters:
        full.take_memories(one)
    assert 18_000 < full.bytes < 24_000, "about half of the room"


def test_memories_go_as_sessions_do_when_memory_is_short_or_nobody_asks() -> None:
    clock = Clock()
    held = cache(clock=clock)
    for one in (ONE, TWO):
        held.keep(one, transcript(1))
        held.keep_memories(one, memories_of("a lamp"))
    before = held.bytes
    held.shrink()
    assert 0 < held.bytes <= before // 2
    clock.now += 61
    held.drop_idle()
    assert held.bytes == 0


def test_memories_of_nothing_known_are_not_held() -> None:
    held = cache()
    held.keep_memories(ONE, HeldMemories())
    held.keep_memories(TWO, memories_of("a lamp", since=None))

    assert held.bytes == 0


def test_more_memories_than_their_part_are_not_held() -> None:
    small = cache(most_bytes=16_000)
    small.keep_memories(ONE, memories_of("a lamp" * 1_000))
    small.keep_memories(TWO, memories_of("a lamp"))

    assert small.take_memories(ONE).since is None
    assert small.take_memories(TWO).since == NOW
    assert small.counts["evicted_bytes"] == 1


def test_a_memory_takes_about_what_it_is_said_to_take() -> None:
    chance = Random(7)
    # As in what people say: few words often, and many once.
    said = [
        " ".join({f"word{int(chance.paretovariate(0.4)) % 4_000}" for _ in range(15)})
        for _ in range(1_000)
    ]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = memories_of(*[text + "." for text in said])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert 0.5 < grown / held.bytes < 1.25
