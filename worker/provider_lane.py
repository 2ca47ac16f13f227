"""The calls of one model with one key in one process: who waits, who is let in, what was made.

Who waits is asked for together, in the order of the turns. Where Redis is away, or has lost what
it knew, the process keeps to its part of the limit by itself.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from agent_core import ModelCall, ProviderError, StreamError
from agent_core.round_robin import RoundRobin
from agent_core.streaming import LONGEST_WAIT, FinalEvent
from shared.ending import end_all
from shared.model_limits import ModelLimits
from worker.fleet_limits import LEASE_SECONDS, Booking, FleetLimits, Reply, Wanted

log = structlog.get_logger(__name__)

ASK_SECONDS = 1.0
"""How long Redis may take to answer; then the process goes by its own bookings."""

_AWAY_SECONDS = 2.0
"""How long Redis is left alone after it did not answer."""

_NEWS_SECONDS = 1.0
"""How often a lane in use hears from the others, and says what it has in hand."""

_LOCAL_POLL_SECONDS = 0.1
_RENEW_SECONDS = LEASE_SECONDS / 3
_BATCH = 64
_CAREFUL_SECONDS = 30.0
_LONGEST_GUESS = 30.0
"""How long all calls wait at the most where the provider refuses one and does not say how long."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A call that waits; `patience` is how many seconds the provider may hold it back."""

    user: str
    tokens: int
    patience: float
    turn: asyncio.Future[Booking] = field(repr=False)


class Lane:
    """The calls of one model with one key in this process: those that wait, and those made.

    A task of its own asks Redis for all who wait, and ends when the lane has been quiet for as
    long as bookings count.
    """

    def __init__(
        self, model: str, process: str, limits: ModelLimits, fleet: FleetLimits, window: float
    ) -> None:
        self._window = window
        self._model = model
        self._process = process
        self._limits = limits
        self._fleet = fleet
        self._turns = RoundRobin[_Waiter]()
        self._bookings: dict[str, Booking] = {}
        self._made = 0
        self._under_way = 0
        self._used_at = 0.0
        self._closed_until = 0.0
        self._refusals = 0
        self._careful: int | None = None
        self._careful_until = 0.0
        self._shut_until = 0.0  # what of it Redis has not been told yet
        self._processes = 1
        self._known = False
        self._is_fresh = False
        self._away_until = 0.0
        self._is_away = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- calls --------------------------------------------------------------------------------

    async def enter(self, call: ModelCall) -> Booking:
        """Wait for the call's turn."""
        now = self._used_at = time.monotonic()
        self._begin_work()
        if not self._limits.any and self._room() > 0 and now >= self._closed_until:
            self._under_way += 1
            return Booking(self._new_id(), now, 0)
        waiter = _Waiter(
            user=call.user,
            tokens=call.expected_tokens() if self._limits.tokens else 0,
            patience=call.options.max_retry_delay,
            turn=asyncio.get_running_loop().create_future(),
        )
        self._turns.add(waiter.user, waiter)
        self._refuse_impatient()
        self._wake.set()
        try:
            booking = await waiter.turn
        except asyncio.CancelledError:
            self._turns.remove(waiter.user, waiter)
            if waiter.turn.done() and not waiter.turn.cancelled() and not waiter.turn.exception():
                # It was let in at the same moment: as if it had never been.
                self._drop(waiter.turn.result())
            raise
        return booking

    def leave(self, booking: Booking) -> None:
        """The call is over."""
        self._under_way -= 1
        self._used_at = time.monotonic()
        booking.state = "over"
        if self._limits.calls or self._limits.tokens or self._careful is not None:
            self._wake.set()  # others may wait for what it gives back

    def note_end(self, booking: Booking, final: FinalEvent) -> None:
        """Count what the call used in place of what it was expected to use."""
        if isinstance(final, StreamError):
            message = final.error
            refused = final.status == 429 or final.retry_after is not None
            if refused and final.retryable:
                booking.tokens = 0
                self._close(final.retry_after)
        else:
            message = final.message
            self._refusals = 0
            if self._careful is not None:
                self._careful += 1
        if message.usage.total_tokens and self._limits.tokens:
            booking.tokens = message.usage.total_tokens

    def _close(self, retry_after: float | None) -> None:
        """Hold all calls back, those of the other processes as well."""
        self._be_careful()
        guess = min(2.0**self._refusals, _LONGEST_GUESS)
        self._refusals += 1
        seconds = guess if retry_after is None else min(retry_after, LONGEST_WAIT)
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)
        self._shut_until = self._closed_until
        log.warning("the provider refuses calls", model=self._model, seconds=round(seconds, 1))
        self._refuse_impatient()
        self._wake.set()

    def _be_careful(self) -> None:
        """Begin with few calls when the provider takes any again, with more for each answer.

        Else all that has waited would go out in the same moment, to be refused together.
        """
        now = time.monotonic()
        if now < self._closed_until:
            return  # all that are under way are refused together
        under_way = self._under_way
        if self._careful is not None:
            under_way = min(under_way, self._careful)
        self._careful = max(1, under_way // 4)
        self._careful_until = now + _CAREFUL_SECONDS

    def _room(self) -> int:
        """How many more calls may be under way, as far as this process's care goes."""
        if self._careful is None:
            return _BATCH
        if time.monotonic() > max(self._careful_until, self._closed_until + _CAREFUL_SECONDS):
            self._careful = None
            return _BATCH
        return min(_BATCH, self._careful - self._under_way)

    def _refuse_impatient(self) -> None:
        closed = self._closed_until - time.monotonic()
        for waiter in list(self._turns):
            if closed > waiter.patience:
                self._refuse(waiter, _refusal(closed))

    def _refuse_all(self, error: Exception) -> float:
        for waiter in list(self._turns):
            self._refuse(waiter, error)
        return _NEWS_SECONDS

    def _refuse(self, waiter: _Waiter, error: Exception) -> None:
        self._turns.remove(waiter.user, waiter)
        if not waiter.turn.done():  # else it has given up, and its task has yet to hear of that
            waiter.turn.set_exception(error)

    def _drop(self, booking: Booking) -> None:
        self._under_way -= 1
        booking.state = "gone"
        self._wake.set()

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._process}:{self._made}"

    # -- the lane's task ----------------------------------------------------------------------

    def _begin_work(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="limits")

    async def _work(self) -> None:
        try:
            while self._is_in_use():
                self._wake.clear()
                try:
                    pause = await self._turn_round()
                except Exception as error:
                    # A mistake of ours: a call that fails is better than one that waits for ever.
                    log.exception("limits failed", model=self._model)
                    pause = self._refuse_all(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            self._task = None

    def _is_in_use(self) -> bool:
        self._forget_old()
        quiet = time.monotonic() - self._used_at
        return bool(self._turns or self._under_way or self._bookings) or quiet < self._window

    def _forget_old(self) -> None:
        past = time.monotonic() - self._window
        for booking in list(self._bookings.values()):
            if booking.at > past:
                break
            if booking.state == "open":
                continue
            del self._bookings[booking.id]

    async def _turn_round(self) -> float:
        """Ask for those who wait and tell what has changed; the seconds until the next time."""
        asking = self._turns.first(max(0, self._room()))
        wanted = [Wanted(self._new_id(), waiter.tokens) for waiter in asking]
        reply = await self._ask(wanted)
        if reply is None:
            granted, pause = self._granted_here(wanted), _LOCAL_POLL_SECONDS
        else:
            granted, pause = reply.granted, _LOCAL_POLL_SECONDS if reply.fresh else reply.wait
        now = time.monotonic()
        for waiter, one in zip(asking[:granted], wanted, strict=False):
            self._let_in(waiter, one, now, told=reply is not None)
        self._refuse_impatient()
        if not asking:
            return _NEWS_SECONDS
        return min(pause, _NEWS_SECONDS) if granted < len(asking) else 0.0

    def _let_in(self, waiter: _Waiter, wanted: Wanted, now: float, *, told: bool) -> None:
        tokens = min(wanted.tokens, self._limits.tokens or wanted.tokens)
        booking = Booking(wanted.id, now, tokens)
        if told:
            booking.told, booking.told_at = (tokens, "open"), now
        self._bookings[booking.id] = booking
        self._under_way += 1
        self._turns.serve(waiter.user, waiter)
        if waiter.turn.done():
            self._drop(booking)  # it gave up while we asked
        else:
            waiter.turn.set_result(booking)

    # -- with Redis ---------------------------------------------------------------------------

    async def _ask(self, wanted: Sequence[Wanted]) -> Reply | None:
        """What Redis says, or None where it says nothing."""
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(ASK_SECONDS):
                reply = await self._exchange(wanted, whole=not self._known)
                if not reply.known:  # it has lost what it knew
                    reply = await self._exchange(wanted, whole=True)
        except (RedisError, OSError, TimeoutError) as error:
            self._note_absence(error, wanted)
            return None
        self._note_presence(reply)
        return reply

    async def _exchange(self, wanted: Sequence[Wanted], *, whole: bool) -> Reply:
        now, shut_until = time.monotonic(), self._shut_until
        # Of a refusal that could not be told at once what is left, or nothing.
        shut = (self._closed_until if whole else shut_until) - now
        news = [b for b in self._bookings.values() if whole or _is_news(b, now)]
        said = [(b.tokens, b.state) for b in news]
        reply = await self._fleet.exchange(
            now,
            news,
            wanted,
            whole=whole,
            shut=shut,
            parts=self._processes,
            alone=self._granted_here(wanted) if self._is_fresh else 0,
        )
        if reply.known:
            for booking, told in zip(news, said, strict=True):
                booking.told, booking.told_at = told, now
            if self._shut_until == shut_until:
                self._shut_until = 0.0
        return reply

    def _note_presence(self, reply: Reply) -> None:
        if self._is_away:
            log.info("limits are shared again", model=self._model)
        self._is_away, self._known, self._is_fresh = False, True, reply.fresh
        self._processes = max(reply.processes, self._processes if reply.fresh else 1)
        if reply.closed:
            self._be_careful()
            self._closed_until = max(self._closed_until, time.monotonic() + reply.closed)

    def _note_absence(self, error: Exception, wanted: Sequence[Wanted]) -> None:
        now = time.monotonic()
        self._away_until = now + _AWAY_SECONDS
        for one in wanted:  # it may have booked them all the same
            self._bookings[one.id] = Booking(one.id, now, 0, "gone")
        if not self._is_away:
            reason = f"{type(error).__name__}: {error}"
            log.warning(
                "limits are not shared: this process keeps to its part of them",
                model=self._model,
                parts=self._processes,
                error=reason,
            )
        self._is_away = True

    # -- without Redis ------------------------------------------------------------------------

    def _granted_here(self, wanted: Sequence[Wanted]) -> int:
        """How many of these may be made by this process's part of the limits."""
        now = time.monotonic()
        if now < self._closed_until:
            return 0
        made = [b for b in self._bookings.values() if b.state != "gone"]
        recent = [b for b in made if b.at > now - self._window]
        calls, under_way = len(recent), sum(b.state == "open" for b in made)
        used = sum(b.tokens for b in recent)
        share = _part_of(self._limits, self._processes)
        for granted, one in enumerate(wanted):
            tokens = min(one.tokens, share.tokens or one.tokens)
            if (
                (share.requests is not None and calls >= share.requests)
                or (share.calls is not None and under_way >= share.calls)
                or (share.tokens is not None and used and used + tokens > share.tokens)
            ):
                return granted
            calls, under_way, used = calls + 1, under_way + 1, used + tokens
        return len(wanted)

    async def aclose(self) -> None:
        """End the lane's task; tell Redis that nothing of this process is under way."""
        if self._task is not None:
            await end_all([self._task])
        for booking in self._bookings.values():
            if booking.state == "open":
                booking.state = "over"
        if self._known and not self._is_away:
            await self._ask([])


def _is_news(booking: Booking, now: float) -> bool:
    changed = booking.told != (booking.tokens, booking.state)
    return changed or (booking.state == "open" and now - booking.told_at > _RENEW_SECONDS)


def _part_of(limits: ModelLimits, parts: int) -> ModelLimits:
    def part(limit: int | None) -> int | None:
        return None if limit is None else max(1, limit // parts)

    return ModelLimits(part(limits.requests), part(limits.tokens), part(limits.calls))


def _refusal(seconds: float) -> ProviderError:
    return ProviderError(
        f"The provider asked for a wait of {seconds:.0f} seconds",
        status=429,
        retry_after=seconds,
        retryable=True,
    )
