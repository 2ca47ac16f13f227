"""The benchmark of recall: a file that it has not seen, corrections, and files that are none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.locomo import DataError, Question, read
from bench.memory import run, table
from worker.embedders import HashingEmbedder

ROOT = Path(__file__).parents[2]


def conversation(name: str = "ours") -> dict[str, Any]:
    """Two sittings of two speakers, with a question of each kind."""
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Ben",
            "session_1_date_time": "1:05 pm on 3 March, 2024",
            "session_1": [
                {"speaker": "Ada", "dia_id": "D1:1", "text": "Hello Ben!"},
                {"speaker": "Ben", "dia_id": "D1:2", "text": "I bought a red kayak."},
                {"speaker": "Ada", "dia_id": "D1:3", "text": "", "blip_caption": "a boat"},
            ],
            "session_2_date_time": "no date",
            "session_2": [
                {"speaker": "Ben", "dia_id": "D2:1", "text": "The kayak sank in the Danube."},
                {"speaker": "Ada", "dia_id": "D2:2", "text": "My cello teacher moved to Linz."},
            ],
            "session_3_date_time": "1:05 pm on 3 May, 2024",
        },
        "qa": [
            {"question": "What became of Ben's kayak?", "evidence": ["D1:2; D2:1"], "category": 1},
            {"question": "Where did Ada's teacher go?", "evidence": ["D2:02"], "category": 2},
            {"question": "Who sings?", "evidence": [], "category": 3},
            {"question": "What did Ben buy?", "evidence": ["D:1:1"], "category": 4},
            {"question": "What did Ada not say?", "adversarial_answer": "x", "category": 5},
        ],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "some.json"
    path.write_text(json.dumps([conversation("one"), conversation("two")]))
    return path


def test_reading(data: Path, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.json"
    wrong = {
        "question": "What did Ben buy?",
        "cited_evidence": ["D1:1"],
        "correct_evidence": ["D1:2"],
    }
    corrections.write_text(json.dumps([wrong, wrong | {"cited_evidence": ["D9:9"]}]))

    one, two = read(data, corrections)

    assert (one.id, two.id, one.speakers) == ("one", "two", ("Ada", "Ben"))
    assert [len(sitting.turns) for sitting in one.sittings] == [3, 2]
    assert one.sittings[0].at.isoformat() == "2024-03-03T13:05:00+00:00"
    assert one.questions == [
        Question("What became of Ben's kayak?", 1, frozenset({"D1:2", "D2:1"})),
        Question("Where did Ada's teacher go?", 2, frozenset({"D2:2"})),
        Question("What did Ben buy?", 4, frozenset({"D1:2"})),
    ]
    assert one.turns[2].text == ""


@pytest.mark.parametrize("wrong", ["7", "{}x", '["D1:1"]', '[{"correct_evidence": ["D1:1"]}]'])
def test_corrections_that_are_none(data: Path, tmp_path: Path, wrong: str) -> None:
    corrections = tmp_path / "corrections.json"
    corrections.write_text(wrong)

    with pytest.raises(DataError, match="corrections"):
        read(data, corrections)


@pytest.mark.parametrize("content", ["", "{", "7", "[7]", "[{}]", '{"conversation": []}', "\xff"])
def test_a_file_of_another_format(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(DataError, match=r"^other\.json (can't be read|is not of the LoCoMo)"):
        read(path)


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--data", str(tmp_path / "none.json")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert ran.returncode == 1
    assert ran.stderr.startswith("bench.memory: none.json can't be read: ")


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([], "has no conversations"),
        ([conversation() | {"qa": []}], "has no questions with evidence"),
    ],
)
def test_nothing_to_measure_is_no_figure(
    tmp_path: Path, entries: list[dict[str, Any]], problem: str
) -> None:
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(entries))
    ran = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--data", str(path), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"bench.memory: empty.json {problem}")


async def test_a_file_that_it_has_not_seen(data: Path, postgres_url: str) -> None:
    result = await run(read(data), postgres_url, HashingEmbedder())

    assert json.loads(json.dumps(result)) == result
    assert result["recall"] == {"5": 1.0, "10": 1.0, "20": 1.0}
    assert set(result["by_category"]) == {"multi-hop", "temporal", "single-hop"}
    assert set(result["coverage"]) == {"250", "500", "1000", "2000"}
    assert (result["questions"], result["memories"]) == (6, 8)
    assert result["embeddings"] == "hashing-384"
    assert result["ms"]["p95"] > 0
    assert "hashing-384; no model was asked" in table(result)


async def test_one_conversation_alone(tmp_path: Path, postgres_url: str) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(conversation()))

    result = await run(read(path), postgres_url, HashingEmbedder())

    assert "fitted" not in result
    assert result["recall"]["5"] == 1.0
