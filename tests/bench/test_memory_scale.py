"""Recall among many memories, in small: the program runs whole, beside a real fleet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import memory_scale
from bench.beside import fleet_playing
from deploy.local.server import ROOT


def test_recalls_beside_a_fleet_are_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "memory_scale.json"
    argv = [sys.executable, "-m", "bench.memory_scale", "--users", "20", "--each", "10"]
    argv += ["--crowd", "0", "--recalls", "40", "--embeddings", "hashing"]
    argv += ["--beside-fleet", "3", "--out", str(out)]

    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    beside = json.loads(out.read_text())["beside_fleet"]
    assert set(beside) == {
        "ms", "ping_ms", "of 10 memories", "of 1,000 memories", "asked_turns_s", "players",
        "turns", "turns_s", "errors",
    }  # fmt: skip
    assert (beside["asked_turns_s"], beside["players"], beside["errors"]) == (3.0, 4, 0)
    assert beside["turns"] > 0
    assert beside["ms"]["p95"] >= beside["ms"]["p50"] > 0


def test_players_end_where_the_measurement_fails(postgres_url: str) -> None:
    with pytest.raises(KeyError), fleet_playing(postgres_url, 1.0) as players:
        raise KeyError("measurement")

    assert players.told == {}


@pytest.mark.parametrize("turns", ["-1", "many", "nan", "1e9"])
def test_turns_that_are_none_are_refused(turns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["memory_scale", "--beside-fleet", turns])
    with pytest.raises(SystemExit) as ended:
        memory_scale.main()

    assert ended.value.code == 2
