"""What the benchmark of cost counts, on a conversation small enough to check by hand."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent_core import Model, ModelCost, Usage
from agent_core.context_budget import ContextBudget
from bench.cost import (
    LAST,
    OURS,
    WHOLE,
    Built,
    LastMessages,
    Prices,
    Replies,
    ask,
    by_turns,
    chained,
    main,
    measure,
    priced,
    replay,
    spoken_in,
    table,
    texts_of,
)
from bench.locomo import Conversation, DataError, Question, Sitting, Turn
from bench.provider_cache import FRAME_TOKENS, Meter, Request, tokens_of
from bench.recalling import Read, Reader, Remembered, Vectors, has_numpy
from shared.prices import load_prices

MODEL = Model("m", "openai", cost=ModelCost(2.0, 10.0, 0.5), cache_minimum=128)
CLAUDE = Model("claude-m", "anthropic", cost=ModelCost(2.0, 10.0, 0.2, 2.5), cache_minimum=128)


def words(count: int, word: str = "word") -> str:
    return " ".join([word] * (count - FRAME_TOKENS))


def test_a_warm_cache_gives_what_two_requests_have_in_common() -> None:
    warm, cold = Meter(MODEL, warm=True), Meter(MODEL, warm=False)
    first = Request([words(200), words(100)], words(14))
    second = Request([words(200), words(100), words(50, "other")], words(14))

    assert (tokens_of(words(200)), tokens_of(words(14))) == (200, 14)
    assert warm.usage(first) == Usage(300, 14, 0, 0, 300)
    # In steps of 128 tokens.
    assert warm.usage(second) == Usage(94, 14, 256, 0, 350)
    assert cold.usage(second) == Usage(350, 14, 0, 0, 350)


def test_a_message_that_differs_only_at_its_end_is_read_as_far_as_it_is_the_same() -> None:
    warm = Meter(MODEL, warm=True)
    warm.usage(Request([words(10), words(300) + " one"], ""))

    assert warm.usage(Request([words(10), words(300) + " two"], "")).cache_read == 256


def test_less_than_the_smallest_beginning_is_not_kept() -> None:
    warm = Meter(replace(MODEL, cache_minimum=4_096), warm=True)
    request = Request([words(2_000)], "")
    warm.usage(request)

    assert warm.usage(request).cache_read == 0


def test_marked_caches_cost_their_writing() -> None:
    warm = Meter(CLAUDE, warm=True)
    first = warm.usage(Request([words(200), words(100)], ""))
    second = warm.usage(Request([words(200), words(100), words(30), words(20)], ""))
    changed = warm.usage(Request([words(200), words(90, "new"), words(20)], ""))

    assert (first.cache_read, first.cache_write, first.input) == (0, 300, 0)
    assert (second.cache_read, second.cache_write) == (300, 50)
    assert (changed.cache_read, changed.cache_write) == (200, 110)


# -- a replay ---------------------------------------------------------------------------------


def conversation(turns: int = 80) -> Conversation:
    def said(no: int) -> str:
        return "My dog is called Rex." if no == 2 else f"Something about number {no}."

    sittings = [
        Sitting(
            number,
            datetime(2026, 1, number, tzinfo=UTC),
            [
                Turn(f"D{number}:{no}", ("Ada", "Ember")[no % 2], said(no + 20 * number - 20))
                for no in range(20)
            ],
        )
        for number in range(1, turns // 20 + 1)
    ]
    asked = Question("What is the dog of Ada called?", 4, frozenset({"D1:2"}))
    return Conversation("c", ("Ada", "Ember"), sittings, [asked])


class Plain(Reader):
    """Reads words as they stand, and sees nothing alike."""

    def similarities(self, vectors: Any, said: str) -> list[float]:
        return [0.0] * len(vectors)


def reader(*conversations: Conversation) -> Reader:
    texts, senses = texts_of(conversations)
    return Plain(
        {
            text: Read(frozenset(text.lower().replace("?", "").replace(".", "").split()))
            for text in [*texts, *senses]
        }
    )


def test_what_one_says_in_a_row_is_one_message() -> None:
    one = conversation(20)
    run = replace(one.sittings[0], turns=[replace(turn, speaker="Ada") for turn in one.turns[:3]])

    (spoken,) = spoken_in(replace(one, sittings=[run]))
    assert spoken.text.count("\n") == 2
    assert spoken.keys == {"0/c/D1:0", "0/c/D1:1", "0/c/D1:2"}


def test_what_was_lost_from_the_window_is_recalled() -> None:
    one = conversation()
    shares = {}
    for name, way in (
        ("whole", LastMessages()),
        ("last", LastMessages(10)),
        ("ours", Built(reader(one), ContextBudget())),
    ):
        replies = Replies()
        replay(way, list(spoken_in(one)), MODEL, replies)
        ask(way, [("0/c/", question) for question in one.questions], replies)
        assert len(replies.warm) == 40
        shares[name] = replies.shares

    assert shares == {"whole": [1.0], "last": [0.0], "ours": [1.0]}


def test_a_chain_goes_round_until_it_is_long_enough() -> None:
    chain = chained([conversation(40)], 100)

    assert sum(len(one.turns) for one in chain) == 100
    assert chain[40].keys == {"1/c/D1:0"}


def test_all_figures() -> None:
    one = conversation()
    result = measure([one], reader(one), Prices(MODEL, MODEL), ContextBudget(), turns=400)

    assert set(result["conversations"]) >= {OURS, WHOLE, LAST}
    ours, whole = result["chained"][OURS], result["chained"][WHOLE]
    assert ours["replies"] == whole["replies"] == 200
    assert ours["warm_usd"] < ours["cold_usd"]
    assert ours["input_max"] < whole["input_max"]
    assert result["shows"]["flat"] == pytest.approx(1, abs=0.1)
    shown = table({**result, "model": "m", "cheap": "m", "prices": "p", "counted_by": "estimate",
                   "embeddings": "none"})  # fmt: skip
    assert OURS in shown


def test_a_model_without_a_price_is_said_so() -> None:
    with pytest.raises(DataError, match="no price for openai/unheard-of"):
        priced("openai/unheard-of", load_prices(None))


def test_nothing_is_chained_of_nothing() -> None:
    assert chained([], 100) == []
    assert chained([replace(conversation(), sittings=[])], 100) == []


class Alike(Reader):
    """Sees texts as alike as the letters are that they have in common."""

    def similarities(self, vectors: Any, said: str) -> list[float]:
        return [
            len({no % 13, no % 7} & set(range(len(said) % 9))) / 3 for no in range(len(vectors))
        ]


@pytest.mark.skipif(not has_numpy(), reason="numpy comes with the extra `embeddings`")
@pytest.mark.parametrize("sees", [Plain, Alike])
def test_by_columns_the_order_is_that_of_one_by_one(sees: type[Reader]) -> None:
    one = conversation(200)
    texts, senses = texts_of([one])
    cues = [
        "What is the dog of Ada called?",
        "Did Ember say something about number 44?",
        "Something about number 17. 18. 19.",
        "Nobody has said these words",
        "What about Ada and Ember, something called Rex?",
        "Is it?",
    ]
    read = sees(
        {
            text: Read(frozenset(text.lower().replace("?", "").replace(".", "").split()))
            for text in [*texts, *senses, *cues]
        }
    )
    quick, plain = Remembered(read, in_columns=True), Remembered(read, in_columns=False)
    keys: list[str] = []
    # The second round says all of it again in the same sittings.
    for spoken in chained([one], 400):
        for key, turn, sitting in spoken.turns:
            quick.add(key, turn, sitting)
            plain.add(key, turn, sitting)
            keys.append(key)
        if len(keys) % 33 and len(keys) not in range(1, 5):
            continue
        for cue in cues:
            for without in (keys[-7:], keys[:3], keys[5:-5:9], keys, []):
                shown = frozenset([*without, "unheard-of"])
                assert quick.best(cue, shown) == plain.best(cue, shown)


@pytest.mark.skipif(not has_numpy(), reason="numpy comes with the extra `embeddings`")
def test_a_matrix_that_grows_says_what_a_list_of_vectors_says() -> None:
    matrix, plain = Vectors(in_matrix=True), Vectors(in_matrix=False)
    asked = [0.5, -2.0]
    for no in range(700):  # past its first size, twice
        for vectors in (matrix, plain):
            vectors.append([float(no), no / 2])
        if no % 100 == 0:
            assert matrix.similarities(asked).tolist() == plain.similarities(asked)
    assert len(matrix) == len(plain) == 700
    assert matrix.similarities(asked).tolist() == plain.similarities(asked)


# -- the program ------------------------------------------------------------------------------


def entry(turns: int, questions: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    said = ["I have a dog, Rex.", "What a fine name!", "He likes the lake."]
    return {
        "sample_id": "c",
        "qa": list(questions),
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Ember",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"dia_id": f"D1:{no + 1}", "speaker": ("Ada", "Ember")[no % 2], "text": said[no]}
                for no in range(turns)
            ],
        },
    }


ASKED = {"question": "What is the dog of Ada called?", "category": 4, "evidence": ["D1:1"]}


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, entries: object, *options: str) -> int:
    data = folder / "talk.json"
    data.write_text(json.dumps(entries), "utf-8")
    monkeypatch.setattr(
        sys, "argv", ["cost", "--data", str(data), "--embeddings", "hashing", *options]
    )
    return main()


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "talk.json has no conversations"),
        ([entry(0)], "talk.json has no turns"),
        ([entry(1)], "talk.json has no replies"),
        ([entry(1, [ASKED])], "talk.json has no replies"),
        ({}, "talk.json is not of the LoCoMo format"),
    ],
)
def test_a_file_with_nothing_to_price_is_said_in_a_line(
    entries: object,
    said: str,
    options: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, tmp_path, entries, *options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"bench.cost: {said}")
    assert err.count("\n") == 1


def test_too_few_turns_for_a_reply(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [entry(3)], "--turns", "1") == 1
    assert "the first 1 turns of talk.json have no reply" in capsys.readouterr().err


@pytest.mark.parametrize("turns", ["0", "-1", "many"])
def test_a_number_of_turns_that_is_none(
    turns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, [entry(3)], "--turns", turns)


def test_three_turns_chained_as_long_as_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [entry(3, [ASKED])], "--turns", "60", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert result["conversations"][OURS]["replies"] == 1
    # Two in each round; the last one has no answer.
    assert {row["replies"] for row in result["chained"].values()} == {39}
    assert result["shows"]["coverage"] == 1
    assert result["chained"][OURS]["input_at_200"] is None
    assert result["shows"]["flat"] is None
    (only,) = result["chained"][OURS]["input_by_turns"]
    assert only["to"] == 250
    assert 1_000 < only["mean"] <= only["max"] < 2_700
    assert result["chained"][OURS]["over_goal"] == 0.0


def test_inputs_are_told_by_so_many_turns() -> None:
    replies = Replies(
        warm=[Usage(total_tokens=tokens) for tokens in (100, 300, 700, 900)],
        turns=[1, 250, 251, 900],
    )

    assert by_turns(replies) == [
        {"to": 250, "mean": 200, "max": 300},
        {"to": 500, "mean": 700, "max": 700},
        {"to": 1000, "mean": 900, "max": 900},
    ]


def test_texts_that_no_database_takes_are_cleaned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = entry(3, [ASKED | {"question": "What\0 is \ud83d it?"}])
    odd["conversation"]["session_1"][0]["text"] = "I have \0 a dog, \ud83d."

    assert run(monkeypatch, tmp_path, [odd], "--turns", "6") == 0


def test_without_questions_nothing_is_said_of_evidence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [entry(3)], "--turns", "60", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert {row["coverage"] for row in result["conversations"].values()} == {None}
    assert result["shows"]["coverage"] is result["shows"]["chained_coverage"] is None
