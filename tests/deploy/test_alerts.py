"""The rules for Prometheus: that each names figures that there are, and tells what to do."""

import re
from typing import Any

import yaml
from prometheus_client.registry import Collector

from api.metrics import Metrics
from tests.deploy.container_files import ROOT
from worker.agent_cache import AgentCache
from worker.figures import Figures, Work
from worker.known_answers import Lookups
from worker.loop_watch import LoopWatch
from worker.slots import Slots

EXPORTER = {"pg_stat_activity_count", "pg_settings_max_connections"}
"""Figures of postgres_exporter."""


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    (group,) = loaded["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def shown() -> set[str]:
    """The names that gateways and workers show, as they stand in rules."""
    cache = AgentCache(most=1, most_bytes=1, idle_seconds=60)
    worker: Collector = Figures(cache, Slots(1), LoopWatch(Slots(1)), Lookups(), Work())
    metrics = [*Metrics(lambda: 0, lambda: 0).collect(), *worker.collect()]
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_count", "_sum", "_bucket")}
    return {one.name + end for one in metrics for end in endings.get(one.type, ())}


def test_each_rule_names_figures_that_there_are() -> None:
    words = [
        (rule["alert"], word)
        for rule in rules()
        for word in re.findall(r"\b(?:fireside|pg|process)_\w+", rule["expr"])
    ]

    assert {alert for alert, _ in words} == {rule["alert"] for rule in rules()}
    assert [one for one in words if one[1] not in shown() | EXPORTER] == []


def test_a_fleet_that_is_gone_has_someone_paged() -> None:
    """The other rules compare figures: where there are none, they are silent."""
    absent = {rule["expr"]: rule for rule in rules() if rule["expr"].startswith("absent(")}

    assert set(absent) == {"absent(fireside_tasks_waiting)", "absent(fireside_sessions_in_flight)"}
    for rule in absent.values():
        assert (rule["for"], rule["labels"]["severity"]) == ("5m", "page")


def test_each_rule_says_where_to_read_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}

    for rule in rules():
        target, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert target == "docs/operations.md"
        assert anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
