"""The benchmark of recall: a file that it has not seen, corrections, and files that are none."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bench.cost import languages_of, texts_of
from bench.locomo import DataError, Question, date_of, read
from bench.memory import replay, run, table
from bench.recalling import Read, read_all, worded
from shared.settings import Settings
from shared.store.database import Database
from shared.store.recall import Cue, recall
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
    assert ran.stderr.splitlines()[-1].startswith(f"bench.memory: empty.json {problem}")


@pytest.mark.parametrize(
    "said",
    [
        "1:56 pm on 8 May, 2023",
        "1:56 p.m. on 8 may 2023",
        "13:56 on 8 May, 2023",
        "8 May, 2023 1:56 pm",
        "May 8, 2023 at 13:56",
        "1:56 PM on Monday, May 8th, 2023",
        "2023-05-08T13:56:00",
        "2023-05-08 13:56",
        "2023-05-08T13:56:00+02:00",
        "2023-05-08T13:56:00Z",
        "2023/05/08 13:56",
    ],
)
def test_dates_are_read_in_many_forms(said: str) -> None:
    assert date_of(said) == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("May 8, 2023", 8),
        ("2023/05/08", 8),
        ("8.5.2023", 8),
        ("2023年5月8日", 8),
        ("Sun 7 May 2023", 7),
    ],
)
def test_a_date_may_have_no_time(said: str, day: int) -> None:
    assert date_of(said) == datetime(2023, 5, day, tzinfo=UTC)


def test_midnight_and_noon_are_twelve() -> None:
    assert date_of("12:09 am on 13 September, 2023") == datetime(2023, 9, 13, 0, 9, tzinfo=UTC)
    assert date_of("12:09 pm on 13 September, 2023") == datetime(2023, 9, 13, 12, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "said",
    ["", "soon", "13:56", "25:00 on 8 May, 2023", "13:00 pm on 8 May, 2023", "05/08/2023",
     "1714741500", "2023-13-08", "31 February, 2023", "8 May, 20230"],
)  # fmt: skip
def test_what_is_no_date_is_none(said: str) -> None:
    assert date_of(said) is None


@pytest.mark.parametrize("said", [None, 1714741500, "no date", ["x"], {}])
def test_a_date_that_cannot_be_read_is_the_day_after_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: object
) -> None:
    one = conversation()
    one["conversation"]["session_2_date_time"] = said

    (found,) = read(written(tmp_path, one))

    assert [sitting.at for sitting in found.sittings] == [
        datetime(2024, 3, 3, 13, 5, tzinfo=UTC),
        datetime(2024, 3, 4, 13, 5, tzinfo=UTC),
    ]
    assert capsys.readouterr().err == (
        "odd.json: dates that can't be read, taken as the day after the one before: 1\n"
    )


def test_one_odd_field_costs_no_more_than_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = conversation("one"), conversation("two"), conversation("three")
    said = one["conversation"]
    said |= {"session_1": None, "session_3": {"a": 1}, "session_2_date_time": "2024-05-03"}
    del said["session_2"][1]["dia_id"], said["speaker_a"], said["speaker_b"]
    said["session_2"] += [7, {"speaker": "Ada", "dia_id": 12, "text": ["a"]}, {}]
    for question in one["qa"]:
        question["category"] = str(question["category"])
    del one["qa"][3]["question"]
    one["qa"] += [None, {"question": "What?", "category": "x"}, {"question": "Who?"}]
    two["qa"] = None
    three["conversation"] = None

    first, second = read(written(tmp_path, [one, two, three, "foo", {}]))

    assert [turn.id for turn in first.turns] == ["D2:1", "D2:2", "D2:4", "D2:5"]
    assert first.turns[1].text == "My cello teacher moved to Linz."
    assert first.speakers == ("Ben", "Ada")
    assert first.questions == [
        Question("What became of Ben's kayak?", 1, frozenset({"D2:1"})),
        Question("Where did Ada's teacher go?", 2, frozenset({"D2:2"})),
    ]
    assert (second.id, second.questions) == ("two", [])
    assert capsys.readouterr().err == (
        "odd.json: conversations that are none, left out: 3, "
        "dates that can't be read, taken as the day after the one before: 1, "
        "questions without a text or a category, left out: 4, "
        "sittings that are no lists, left out: 1, turns that are none, left out: 1\n"
    )


def test_texts_are_such_as_a_database_takes(tmp_path: Path) -> None:
    one = conversation()
    one["conversation"]["session_1"][1]["text"] = "a red\0 \ud83d kayak"
    one["qa"][0]["question"] = "What\0 became \udc00of it?"

    (found,) = read(written(tmp_path, one))

    assert found.turns[1].text == "a red \ufffd kayak"
    assert found.questions[0].text == "What became \ufffdof it?"


def written(folder: Path, content: object) -> Path:
    path = folder / "odd.json"
    path.write_text(json.dumps(content))
    return path


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


def chinese() -> dict[str, Any]:
    """One that is found by what stands within its words alone."""
    said = ["我昨天买了iPhone手机", "我养了一只猫", *(f"今天天气很好{no}" for no in range(40))]
    turns = [
        {"speaker": "王小明", "dia_id": f"D1:{no}", "text": one} for no, one in enumerate(said)
    ]
    asked = [
        {"question": "iPhone?", "evidence": ["D1:0"], "category": 4},
        {"question": "猫?", "evidence": ["D1:1"], "category": 4},
    ]
    return {
        "conversation": {"speaker_a": "王小明", "speaker_b": "Ben", "session_1": turns},
        "qa": asked,
    }


async def test_a_conversation_without_blanks(tmp_path: Path, postgres_url: str) -> None:
    path = tmp_path / "chinese.json"
    path.write_text(json.dumps([chinese(), conversation()]))
    one, other = read(path)
    assert (one.language, other.language) == ("simple", "english")
    assert replace(other, sittings=[]).language == "english"

    result = await run([one], postgres_url, HashingEmbedder())

    assert result["recall"]["5"] == 1.0


async def test_a_replay_asks_by_the_words_that_the_store_asks_by(
    tmp_path: Path, postgres_url: str
) -> None:
    path = tmp_path / "chinese.json"
    path.write_text(json.dumps([chinese(), conversation()]))
    both = read(path)
    reader = await read_all(*texts_of(both), postgres_url, HashingEmbedder(), languages_of(both))
    db = Database.from_settings(Settings(database_url=SecretStr(postgres_url)))
    try:
        for one in both:
            replayed = await replay(db, one)
            for cue in texts_of([one])[1]:
                asked = Cue(replayed.user, replayed.character, cue, one.language)
                stored = (await recall(db, asked, None)).matches
                assert {row.text: (set(row.hits or ()), row.length) for row in stored.rows()} == {
                    turn.text: _read(reader[cue], reader[worded(turn)])
                    for turn in one.turns
                    if turn.text
                }
    finally:
        await db.close()


def _read(cue: Read, said: Read) -> tuple[set[str], int]:
    """Which words of a cue a turn has, and how many in all."""
    asked = cue.words if cue.asked is None else cue.asked
    return set(asked & said.words), len(said.words)
