"""What a worker shows to Prometheus."""

from uuid import UUID

from prometheus_client import CollectorRegistry, generate_latest

from deploy.local.ports import free_port
from shared.exposition import show
from shared.records import KnownBranch
from tests.exposed import lines_at
from worker.agent_cache import AgentCache, size_of
from worker.figures import Figures, Work
from worker.known_answers import Lookups
from worker.loop_watch import LoopWatch
from worker.slots import Slots
from worker.transcript import Transcript


def figures() -> Figures:
    cache, slots = AgentCache(most=1, most_bytes=1 << 20, idle_seconds=60), Slots(3)
    for number in (1, 2):
        cache.keep(UUID(int=number), Transcript(KnownBranch(1, 1), (b"x",)))
    cache.count(None, after=None, read=3)
    slots.take_free()
    answers: Lookups = Lookups({("referee", "hit"): 2, ("judge", "miss"): 1})
    watch = LoopWatch(slots)
    watch.look(0.5)
    return Figures(cache, slots, watch, answers, Work())


def test_work_is_counted_by_how_it_ended() -> None:
    work = Work()
    work.began(1)
    work.began(2)
    work.ended("story", "completed")
    work.ended("story", "failed")
    work.called("done", 1.5)
    registry = CollectorRegistry()
    registry.register(work)
    lines = generate_latest(registry).decode().splitlines()

    assert {
        'fireside_task_attempts_total{kind="first"} 1.0',
        'fireside_task_attempts_total{kind="again"} 1.0',
        'fireside_tasks_ended_total{agent="story",outcome="completed"} 1.0',
        'fireside_tasks_ended_total{agent="story",outcome="failed"} 1.0',
        'fireside_model_call_seconds_bucket{le="1.0",outcome="done"} 0.0',
        'fireside_model_call_seconds_bucket{le="2.0",outcome="done"} 1.0',
        'fireside_model_call_seconds_count{outcome="done"} 1.0',
    } <= set(lines)


def test_prometheus_is_shown_what_the_cache_does() -> None:
    port = free_port()
    lines = lines_at(port, show(f":{port}", "FIRESIDE_WORKER_METRICS", figures()))

    size = float(size_of(Transcript(KnownBranch(1, 1), (b"x",))))
    assert [line for line in lines if line.startswith("fireside_")] == [
        'fireside_agent_cache_lookups_total{result="hit"} 0.0',
        'fireside_agent_cache_lookups_total{result="part"} 0.0',
        'fireside_agent_cache_lookups_total{result="miss"} 1.0',
        'fireside_agent_cache_evictions_total{reason="count"} 1.0',
        'fireside_agent_cache_evictions_total{reason="bytes"} 0.0',
        'fireside_agent_cache_evictions_total{reason="idle"} 0.0',
        'fireside_agent_cache_evictions_total{reason="memory"} 0.0',
        'fireside_response_cache_lookups_total{purpose="referee",result="hit"} 2.0',
        'fireside_response_cache_lookups_total{purpose="referee",result="miss"} 0.0',
        'fireside_response_cache_lookups_total{purpose="judge",result="hit"} 0.0',
        'fireside_response_cache_lookups_total{purpose="judge",result="miss"} 1.0',
        "fireside_agent_cache_sessions 1.0",
        f"fireside_agent_cache_bytes {size}",
        "fireside_sessions_in_flight 1.0",
        "fireside_sessions_in_flight_most 3.0",
        "fireside_loop_late_seconds 0.1",
    ]
