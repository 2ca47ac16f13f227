"""What one gateway process holds, and what runs beside its requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Self

import structlog
from fastapi import Depends, FastAPI, Request
from redis.asyncio import Redis

from api.announcer import Announcer
from api.backlog import Backlog
from api.beside import Beside
from api.budgeting import Budgeting
from api.catalog import Catalog
from api.identity import Identity
from api.keyed import ASK_SECONDS, KeyedStreams
from api.lag import watch_for_ever
from api.metrics import FromThread, Metrics
from api.slots import StreamSlots
from api.stopping import Stopping
from shared.erasure import clear_for_ever
from shared.errors import FiresideError
from shared.events import Publisher
from shared.exposition import show
from shared.follow import Follower
from shared.lineage import Lineage
from shared.queue import Hints
from shared.redis_pool import connect_redis
from shared.retention import prune_for_ever
from shared.schema import warn_of_newer_schema
from shared.settings import Settings
from shared.store.database import Database
from shared.sweep import sweep_for_ever
from shared.trouble import Trouble

log = structlog.get_logger(__name__)

_LAST_NEWS_SECONDS = 2.0

_COUNT_SECONDS = 1.0
"""How often what is open is counted."""


@dataclass(slots=True)
class Gateway:
    """The connections of this process and its own small states.

    `identity` is None where access is `none`; `not_ready` is by what `/readyz` asks.
    """

    settings: Settings
    db: Database
    lineage: Lineage
    redis: Redis
    hints: Hints
    announcer: Announcer
    follower: Follower
    catalog: Catalog
    identity: Identity | None
    slots: StreamSlots
    keyed: KeyedStreams
    backlog: Backlog
    budgeting: Budgeting
    metrics: Metrics
    stopping: Stopping
    not_ready: Mapping[str, Trouble]
    beside: Beside = field(default_factory=Beside)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A gateway that has not begun; nothing connects yet."""
        db = Database.from_settings(settings)
        redis = connect_redis(settings)
        hints = Hints(settings, redis)
        guarded = settings.auth == "required"
        identity = Identity(settings, db) if guarded else None
        follower = Follower(redis, on_keys_gone=identity.forget_keys if identity else None)
        announcer = Announcer(hints, Publisher(redis))
        per_user = settings.max_sockets_per_user if guarded else settings.max_sockets
        slots = StreamSlots(settings.max_sockets, per_user)

        def wake_all() -> None:
            for session_id in follower.sessions:
                follower.mark_stale(session_id)

        return cls(
            settings=settings,
            db=db,
            lineage=Lineage(db, redis),
            redis=redis,
            hints=hints,
            announcer=announcer,
            follower=follower,
            catalog=Catalog(db, settings.default_story, offered=settings.agent_seconds),
            identity=identity,
            slots=slots,
            keyed=KeyedStreams(),
            backlog=Backlog(settings.max_queued, settings.max_queued_per_user if guarded else None),
            budgeting=Budgeting(settings.budgets),
            metrics=Metrics(streams_open=lambda: slots.open, waiting=lambda: announcer.waiting),
            stopping=Stopping(on_stop=wake_all),
            not_ready={one: Trouble(log, f"not ready: {one}") for one in ("postgres", "redis")},
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what works beside the requests; close the connections at the end."""
        beside, db, settings = self.beside, self.db, self.settings
        beside.begin("lineage", self.lineage.watch_for_ever)
        await self.lineage.looked()
        beside.begin("announcer", self.announcer.send_for_ever)
        sweep = partial(sweep_for_ever, every=settings.sweep_seconds, grace=settings.lease_seconds)
        beside.begin("sweep", partial(sweep, db, self.hints))
        beside.begin("erasures", partial(clear_for_ever, db, self.redis, self.hints))
        beside.begin("retention", partial(prune_for_ever, db, settings))
        count = partial(self.backlog.refresh_for_ever, every=_COUNT_SECONDS)
        beside.begin("backlog", partial(count, db, self.redis))
        beside.begin("budgets", partial(self.budgeting.refresh_for_ever, db, every=_COUNT_SECONDS))
        lag = partial(watch_for_ever, db, self.follower, every=settings.poll_seconds)
        beside.begin("lag", lag)
        beside.begin("keys", partial(self.keyed.watch_for_ever, db, every=ASK_SECONDS))
        await self.follower.start()
        with contextlib.suppress(FiresideError):  # readyz tells what is wrong
            warn_of_newer_schema(await self.db.revision())
        try:
            async with self._shown():
                with self.stopping.on_signals():
                    yield
        finally:
            self.stopping.begin()
            await self.beside.end()
            await self.announcer.send_the_rest(_LAST_NEWS_SECONDS)
            await self.follower.stop()
            with contextlib.suppress(OSError):
                await self.redis.aclose()
            await self.db.close()

    @asynccontextmanager
    async def _shown(self) -> AsyncIterator[None]:
        """Show the figures at their own address, if they have one."""
        where = self.settings.gateway_metrics
        if where is None:
            yield
            return
        figures = FromThread(self.metrics, self.db, asyncio.get_running_loop())
        # Both wait: one for a name server, one for its thread.
        stop = await asyncio.to_thread(show, where, "FIRESIDE_GATEWAY_METRICS", figures)
        try:
            yield
        finally:
            await asyncio.to_thread(stop)


def gateway_of_app(app: FastAPI) -> Gateway:
    """The gateway that an application runs on."""
    gateway: Gateway = app.state.gateway
    return gateway


async def _gateway_of(request: Request) -> Gateway:
    return gateway_of_app(request.app)


Parts = Annotated[Gateway, Depends(_gateway_of)]
"""The gateway, as a parameter of a route."""
