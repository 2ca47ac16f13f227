"""What this process counts, for Prometheus."""

from collections.abc import Callable

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
from starlette.requests import Request
from starlette.responses import Response

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

    def page(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    """All figures; from this machine or with a token only."""
    metrics: Metrics = request.app.state.gateway.metrics
    return Response(metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})
