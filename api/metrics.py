"""What this process counts, for Prometheus."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator

from fastapi import APIRouter
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import FiresideError
from shared.store import dead_tasks, quarantine, turns, usage
from shared.store.database import Database

_ASK_SECONDS = 1.0
"""How long a page of figures waits for Postgres; without it the last ones stand."""

_LOOP_SECONDS = 5.0
"""How long a page that a thread makes waits for the loop as well."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one gateway.

    Args:
        streams_open: how many WebSockets and event streams are open now.
        waiting: how many announcements wait for Redis now.
    """

    def __init__(self, streams_open: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "fireside_http_requests",
            "HTTP requests that were answered",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "fireside_http_request_seconds",
            "Time to answer an HTTP request, streams and long polls included",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._actions = Counter(
            "fireside_actions_accepted",
            "Actions that became a task, or were known from before",
            ("type", "fresh"),
            registry=registry,
        )
        self._frames = Counter(
            "fireside_frames_sent", "Frames sent to WebSocket clients", registry=registry
        )
        self._closed = Counter(
            "fireside_sockets_closed",
            "WebSockets that this process closed",
            ("code",),
            registry=registry,
        )
        self._dead = Gauge(
            "fireside_tasks_dead", "Tasks of the whole fleet that were given up", registry=registry
        )
        self._quarantined = Gauge(
            "fireside_sessions_quarantined",
            "Sessions of the whole fleet in quarantine",
            registry=registry,
        )
        self._refused = Counter(
            "fireside_actions_unpaid",
            "Actions that were refused because a budget is spent",
            registry=registry,
        )
        self._unpriced = Gauge(
            "fireside_model_calls_unpriced",
            "Calls of the whole fleet in the last day whose model has no price",
            registry=registry,
        )
        self._waiting = Gauge(
            "fireside_tasks_waiting",
            "Tasks of the whole fleet that wait to begin, consolidation left out",
            registry=registry,
        )
        self._oldest = Gauge(
            "fireside_tasks_waiting_oldest_seconds",
            "For how long the oldest of them has waited",
            registry=registry,
        )
        for gauge in (self._waiting, self._oldest, self._dead, self._quarantined, self._unpriced):
            gauge.set(math.nan)  # until Postgres was asked
        Gauge("fireside_streams_open", "Open streams", registry=registry).set_function(streams_open)
        Gauge(
            "fireside_announcements_waiting", "News that wait for Redis", registry=registry
        ).set_function(waiting)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a template, so that the number of series is bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def accepted(self, action_type: str, *, fresh: bool) -> None:
        """Count an action."""
        self._actions.labels(action_type, str(fresh).lower()).inc()

    def sent(self, frames: int) -> None:
        """Count frames."""
        self._frames.inc(frames)

    def closed(self, code: int) -> None:
        """Count a WebSocket that was closed from here."""
        self._closed.labels(str(code)).inc()

    def unpaid(self) -> None:
        """Count an action that was refused for want of money."""
        self._refused.inc()

    def found(
        self, *, waiting: tuple[int, float], dead: int, quarantined: int, unpriced: int
    ) -> None:
        """Take what Postgres knows of the whole fleet."""
        self._waiting.set(waiting[0])
        self._oldest.set(waiting[1])
        self._dead.set(dead)
        self._quarantined.set(quarantined)
        self._unpriced.set(unpriced)

    def page(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All figures."""
        yield from self._registry.collect()

    async def ask(self, db: Database) -> None:
        """Ask Postgres what it knows of the whole fleet; where it does not answer, that stands."""
        with contextlib.suppress(FiresideError, TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS):
                self.found(
                    waiting=await turns.waiting_in_all(db),
                    dead=await dead_tasks.count(db),
                    quarantined=await quarantine.count(db),
                    unpriced=await usage.without_price(db),
                )


class FromThread(Collector):
    """The same figures for a thread beside the loop, which asks Postgres before it has them."""

    def __init__(self, metrics: Metrics, db: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._metrics = metrics
        self._db = db
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """All figures; raises TimeoutError where the loop stands still."""
        asked = asyncio.run_coroutine_threadsafe(self._metrics.ask(self._db), self._loop)
        asked.result(_ASK_SECONDS + _LOOP_SECONDS)
        return self._metrics.collect()


router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    """All figures; for this machine only."""
    metrics: Metrics = request.app.state.gateway.metrics
    await metrics.ask(request.app.state.gateway.db)
    return Response(metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})
