"""What a worker process counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.agent_cache import AgentCache
from worker.known_answers import PURPOSES, Lookups
from worker.loop_watch import LoopWatch
from worker.slots import Slots

_CALL_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
_LOOKUPS = ("hit", "part", "miss")
_EVICTIONS = ("count", "bytes", "idle", "memory")


class Work(Collector):
    """Tasks and calls of models, counted as they end; labels are bounded and name no user."""

    def __init__(self) -> None:
        self._attempts = Counter(
            "fireside_task_attempts",
            "Attempts of tasks: the first one, or again after one that was lost",
            ("kind",),
            registry=None,
        )
        self._tasks = Counter(
            "fireside_tasks_ended",
            "Tasks that ended here, by their agent and how",
            ("agent", "outcome"),
            registry=None,
        )
        self._calls = Histogram(
            "fireside_model_call_seconds",
            "Calls of models by how they ended, each try by itself",
            ("outcome",),
            buckets=_CALL_SECONDS,
            registry=None,
        )

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        for one in (self._attempts, self._tasks, self._calls):
            yield from one.collect()

    def began(self, attempt: int) -> None:
        """Count an attempt of a task."""
        self._attempts.labels("first" if attempt == 1 else "again").inc()

    def ended(self, agent: str, outcome: str) -> None:
        """Count a task."""
        self._tasks.labels(agent, outcome).inc()

    def called(self, outcome: str, seconds: float) -> None:
        """Count a call of a model."""
        self._calls.labels(outcome).observe(seconds)


class Figures(Collector):
    """Reads what the parts of a worker have counted when it is asked, and costs nothing before."""

    def __init__(
        self,
        cache: AgentCache,
        slots: Slots,
        loop_watch: LoopWatch,
        answers: Lookups,
        work: Work,
    ) -> None:
        self._work = work
        self._loop_watch = loop_watch
        self._cache = cache
        self._slots = slots
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        yield from self._work.collect()
        counts = self._cache.counts
        lookups = CounterMetricFamily(
            "fireside_agent_cache_lookups",
            "Claims of sessions with messages, by what the cache knew of them",
            labels=["result"],
        )
        for result in _LOOKUPS:
            lookups.add_metric([result], counts[result])
        yield lookups
        evictions = CounterMetricFamily(
            "fireside_agent_cache_evictions",
            "Sessions and memories that the cache holds no more, by what they were too much for",
            labels=["reason"],
        )
        for reason in _EVICTIONS:
            evictions.add_metric([reason], counts[f"evicted_{reason}"])
        yield evictions
        answers = CounterMetricFamily(
            "fireside_response_cache_lookups",
            "Calls of models whose answer may be known, by what they are for and whether it was",
            labels=["purpose", "result"],
        )
        for purpose in PURPOSES:
            answers.add_metric([purpose, "hit"], self._answers[purpose, "hit"])
            answers.add_metric([purpose, "miss"], self._answers[purpose, "miss"])
        yield answers
        for name, text, value in (
            ("agent_cache_sessions", "Sessions that the cache holds", len(self._cache)),
            ("agent_cache_bytes", "Bytes that its entries take", self._cache.bytes),
            ("sessions_in_flight", "Sessions that run here", self._slots.taken),
            ("sessions_in_flight_most", "Sessions that may run here at once", self._slots.most),
            ("loop_late_seconds", "How late the loop was lately", self._loop_watch.late),
        ):
            yield GaugeMetricFamily(f"fireside_{name}", text, value=value)
