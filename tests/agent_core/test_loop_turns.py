"""What costs much of a loop's time gets its turns, and so does all else."""

import asyncio
import time
from itertools import pairwise

import pytest

from agent_core.loop_turns import FEWEST, next_turn, waited_seconds
from tests.waiting import within


class Counted:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.turns = 0
        self._loop = asyncio.get_running_loop()
        self._again()

    def _again(self) -> None:
        self.turns += 1
        self._loop.call_soon(self._again)


async def let_in(count: int, *, seconds: float = 0.0) -> list[int]:
    """How many of `count` were let in at each turn, where each works for so long."""
    counted = Counted()
    at: list[int] = []

    async def work() -> None:
        await next_turn()
        at.append(counted.turns)
        time.sleep(seconds)  # noqa: ASYNC251 - what costs the loop's time

    await within(asyncio.gather(*(work() for _ in range(count))))
    return [at.count(turn) for turn in sorted(set(at))]


async def test_who_waits_is_let_in_soon_but_not_at_once() -> None:
    counted = Counted()
    for _ in range(3):
        before = counted.turns
        await next_turn()
        assert before < counted.turns <= before + 2


async def test_many_are_let_in_a_few_at_each_turn_and_in_their_order() -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        await next_turn()
        order.append(number)

    await within(asyncio.gather(*(work(number) for number in range(100))))

    assert order == list(range(100))


async def test_more_are_let_in_where_the_turns_are_short_and_fewer_where_they_are_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = await let_in(200)
    assert max(quick) > 2 * FEWEST

    monkeypatch.setattr("agent_core.loop_turns.TURN_SECONDS", 0.001)
    slow = await let_in(200, seconds=0.002)
    assert slow[0] > FEWEST  # they were short until now
    assert all(later <= earlier for earlier, later in pairwise(slow))
    assert slow[-2] == FEWEST


async def test_quiet_hours_let_in_no_more_at_once() -> None:
    for _ in range(100):
        await next_turn()

    assert (await let_in(100))[0] <= FEWEST + 1


async def test_who_gives_up_takes_nobodys_turn() -> None:
    waiting = [asyncio.create_task(next_turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()

    await within(asyncio.wait(waiting))

    assert [task.cancelled() for task in waiting] == [False, True, False]
    await within(next_turn())


async def test_who_gives_up_waits_no_more() -> None:
    waiting = [asyncio.create_task(next_turn()) for _ in range(20 * FEWEST)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(0)

    assert waited_seconds() == 0.0


async def test_it_is_known_how_long_the_next_has_waited() -> None:
    assert waited_seconds() == 0.0
    waiting = [asyncio.create_task(next_turn()) for _ in range(3)]
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251
    assert waited_seconds() >= 0.05
    await within(asyncio.gather(*waiting))
    assert waited_seconds() == 0.0


def test_each_loop_has_turns_of_its_own() -> None:
    async def leave_waiting() -> None:
        waiting = asyncio.create_task(next_turn())
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave_waiting())
    asyncio.run(next_turn())
    with pytest.raises(RuntimeError, match="no running event loop"):
        waited_seconds()
