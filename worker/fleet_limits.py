"""What the whole fleet may ask of one model with one key in a minute, kept in Redis.

Every process keeps its own bookings and tells them; Redis only adds them up. So a Redis that lost
everything has it back as soon as each process has said what it knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from redis.asyncio import Redis

from shared.encoding import dumps
from shared.model_limits import ModelLimits

WINDOW_SECONDS = 61.0
"""A minute and the time that a request may be on its way to the provider."""

LEASE_SECONDS = 15.0
"""How long a call counts as under way after its process has last said so."""

State: TypeAlias = Literal["open", "over", "gone"]
"""Of a booking: its call is under way, has ended, or was never made."""

# All bookings are in one sorted set by the time they were made. Each call to the script first
# forgets what the window has left behind, then hears what has changed, then grants.
_SCRIPT = """
local calls, tokens, open, seen, shut, fresh = unpack(KEYS)
local said = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local past = now - said.window

redis.call('ZREMRANGEBYSCORE', seen, '-inf', past)
if not said.whole and not redis.call('ZSCORE', seen, said.process) then
    return {0, 0, 0, 0, 0, 0}
end
if said.parts > 1 and redis.call('ZCARD', seen) == 0 then
    redis.call('SET', fresh, '1', 'PX', said.grace)
end
local is_fresh = redis.call('EXISTS', fresh)
redis.call('ZADD', seen, now, said.process)

local function forget(id)
    local kept = redis.call('HGET', tokens, id)
    if kept then
        redis.call('HINCRBY', tokens, 'sum', -kept)
        redis.call('HDEL', tokens, id)
    end
    redis.call('ZREM', calls, id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', calls, '-inf', past)) do
    forget(id)
end
redis.call('ZREMRANGEBYSCORE', open, '-inf', now)
if redis.call('ZCARD', calls) == 0 then
    redis.call('DEL', tokens)
end

local function book(id, at, count)
    forget(id)
    redis.call('ZADD', calls, at, id)
    redis.call('HSET', tokens, id, count)
    redis.call('HINCRBY', tokens, 'sum', count)
end
for _, one in ipairs(said.bookings) do
    local id, age, count, state = one[1], one[2], one[3], one[4]
    if state == 'gone' then
        forget(id)
    elseif age < said.window then
        book(id, now - age, count)
    end
    if state == 'open' then
        redis.call('ZADD', open, now + said.lease, id)
    else
        redis.call('ZREM', open, id)
    end
end

if said.shut > math.max(redis.call('PTTL', shut), 0) then
    redis.call('SET', shut, '1', 'PX', said.shut)
end
local closed = math.max(redis.call('PTTL', shut), 0)

local function leaves_at(index)
    local found = redis.call('ZRANGE', calls, index, index, 'WITHSCORES')
    return found[2] - past
end
local function wait_for_tokens(excess)
    local oldest = redis.call('ZRANGE', calls, 0, 99)
    for index, count in ipairs(redis.call('HMGET', tokens, unpack(oldest))) do
        excess = excess - count
        if excess <= 0 then
            return leaves_at(index - 1)
        end
    end
    return leaves_at(#oldest - 1)
end

local granted, wait, most = 0, closed, #said.wanted
if is_fresh == 1 then
    most = math.min(most, said.alone)
end
while wait == 0 and granted < most do
    local id, count = said.wanted[granted + 1][1], said.wanted[granted + 1][2]
    local made = redis.call('ZCARD', calls)
    local used = tonumber(redis.call('HGET', tokens, 'sum') or '0')
    if said.tokens > 0 then
        count = math.min(count, said.tokens)
    end
    if said.requests > 0 and made >= said.requests then
        wait = leaves_at(made - said.requests)
    elseif said.tokens > 0 and used > 0 and used + count > said.tokens then
        wait = wait_for_tokens(used + count - said.tokens)
    elseif said.calls > 0 and redis.call('ZCARD', open) >= said.calls then
        wait = said.poll
    else
        book(id, now, count)
        redis.call('ZADD', open, now + said.lease, id)
        granted = granted + 1
    end
end
for _, key in ipairs({calls, tokens, open, seen}) do
    redis.call('PEXPIRE', key, 2 * said.window)
end
return {1, granted, wait, closed, redis.call('ZCARD', seen), is_fresh}
"""

_GRACE_SECONDS = 4.0
"""How long the processes have to find out that Redis lost everything, and to say what they know."""

_POLL_SECONDS = 0.25


@dataclass(slots=True)
class Booking:
    """One call: made at `at` of this machine's monotonic clock, of so many tokens.

    `told` is what Redis knows of it, `told_at` since when.
    """

    id: str
    at: float
    tokens: int
    state: State = "open"
    told: tuple[int, State] | None = None
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that asks to be made, and the tokens that it is expected to use."""

    id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What Redis said.

    Without `known` nothing was done: this process must say everything that it knows. `granted`
    counts the wanted calls that may be made, from the first on; the next one should ask again
    after `wait` seconds. The provider wants no call for `closed` seconds. `processes` have asked
    within the last minute. While it is `fresh` Redis does not yet know what all of them have
    booked, and grants no more than each would make alone.
    """

    known: bool
    granted: int
    wait: float
    closed: float
    processes: int
    fresh: bool


class FleetLimits:
    """The limits of one model and key, as one process sees it.

    Args:
        name: of these limits; it becomes part of keys in Redis, so no secret may be in it.
        process: this process's own name.
        window: how many seconds a limit "per minute" is about.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        process: str,
        limits: ModelLimits,
        window: float = WINDOW_SECONDS,
    ) -> None:
        parts = ("calls", "tokens", "open", "seen", "shut", "fresh")
        # The braces keep the keys on one node of a cluster.
        self._keys = [f"fireside:limit:{{{name}}}:{part}" for part in parts]
        self._script = redis.register_script(_SCRIPT)
        self._process = process
        self._limits = limits
        self._window = window

    async def exchange(
        self,
        now: float,
        bookings: Sequence[Booking],
        wanted: Sequence[Wanted],
        *,
        whole: bool,
        shut: float,
        parts: int,
        alone: int,
    ) -> Reply:
        """Tell what has changed, and ask for calls; raises what redis-py raises.

        Args:
            now: the monotonic clock that the bookings' times are of.
            whole: the bookings are all that this process has.
            shut: seconds for which the provider has just refused all calls.
            parts: how many processes there were when Redis answered the last time.
            alone: how many of the wanted calls this process would make without Redis.
        """
        limits = self._limits
        said = {
            "process": self._process,
            "window": _ms(self._window),
            "lease": _ms(LEASE_SECONDS),
            "poll": _ms(_POLL_SECONDS),
            "requests": limits.requests or 0,
            "tokens": limits.tokens or 0,
            "calls": limits.calls or 0,
            "whole": whole,
            "shut": _ms(shut),
            "parts": parts,
            "alone": alone,
            "grace": _ms(_GRACE_SECONDS),
            "bookings": [[b.id, _ms(now - b.at), b.tokens, b.state] for b in bookings],
            "wanted": [[one.id, one.tokens] for one in wanted],
        }
        reply = await self._script(self._keys, [dumps(said)])
        known, granted, wait, closed, processes, fresh = reply
        seconds = (wait / 1000, closed / 1000)
        return Reply(bool(known), granted, *seconds, processes, bool(fresh))


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
