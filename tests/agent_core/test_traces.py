"""The agent against the recorded traces: whole lists of lines, compared by equality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agent_core.scenarios import SCENARIOS
from tests.agent_core.trace_lines import Log, normalised


@pytest.fixture(scope="module")
def traces(shared_data: Path) -> dict[str, list[str]]:
    recorded: dict[str, list[str]] = json.loads(
        (shared_data / "agent-traces" / "traces.json").read_text()
    )
    return recorded


def test_every_recorded_scenario_is_played(traces: dict[str, list[str]]) -> None:
    assert SCENARIOS.keys() == traces.keys()


@pytest.mark.parametrize("name", SCENARIOS)
async def test_trace(name: str, traces: dict[str, list[str]]) -> None:
    log: Log = []

    await SCENARIOS[name](log)

    assert normalised(log) == normalised(traces[name])
