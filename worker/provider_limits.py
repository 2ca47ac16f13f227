"""Calls of models within what their providers allow the whole fleet, users served in turn."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from agent_core import CallReport, ModelCall
from shared.model_limits import ModelLimits, read_limits
from shared.settings import Settings
from worker.fleet_limits import WINDOW_SECONDS, FleetLimits
from worker.provider_lane import Lane


class ProviderLimits:
    """The CallLimiter of a worker process.

    Args:
        default: for each model that `limits` does not name.
        limits: by the model's name, `provider/id`.
        window: how many seconds a limit "per minute" is about.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        default: ModelLimits,
        limits: Mapping[str, ModelLimits],
        window: float = WINDOW_SECONDS,
    ) -> None:
        self._redis = redis
        self._default = default
        self._limits = dict(limits)
        self._window = window
        self._process = secrets.token_hex(4)
        self._lanes: dict[str, Lane] = {}

    @classmethod
    def from_settings(cls, settings: Settings, redis: Redis) -> "ProviderLimits":
        """The limits as an operator has set them."""
        default = ModelLimits(
            settings.model_requests_per_minute,
            settings.model_tokens_per_minute,
            settings.model_concurrency,
        )
        return cls(redis, default=default, limits=read_limits(settings.model_limits))

    @asynccontextmanager
    async def admit(self, call: ModelCall) -> AsyncIterator[CallReport]:
        """Wait for the call's turn and hold its slot.

        Raises:
            ProviderError: the provider wants no calls for longer than this one may be held back.
        """
        lane = self._lane_of(call)
        booking = await lane.enter(call)
        try:
            yield lambda final: lane.note_end(booking, final)
        finally:
            lane.leave(booking)

    async def aclose(self) -> None:
        """Give back what is still held; the others need not wait for it to run out."""
        await asyncio.gather(*(lane.aclose() for lane in self._lanes.values()))

    def _lane_of(self, call: ModelCall) -> Lane:
        name = limits_name(call)
        lane = self._lanes.get(name)
        if lane is None:
            limits = self._limits.get(call.model.name, self._default)
            fleet = FleetLimits(self._redis, name, self._process, limits, self._window)
            lane = Lane(call.model.name, self._process, limits, fleet, self._window)
            self._lanes[name] = lane
        return lane


def limits_name(call: ModelCall) -> str:
    """What a call is counted under: the model, and a short hash of where and with which key."""
    secret = f"{call.model.base_url or ''}\n{call.options.api_key or ''}"
    return f"{call.model.name}:{hashlib.sha256(secret.encode()).hexdigest()[:12]}"
