"""JSON as Postgres, Redis and browsers all take it."""

import tracemalloc
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from shared.encoding import dumps, dumps_text, loads, well_formed
from shared.records import Step
from shared.store.database import Database

LOW_SURROGATE = "\udc00"
HIGH_SURROGATE = "\ud800"

pieces = st.text(max_size=3) | st.sampled_from(
    ["\0", "\\", "u0000", "\\u0000", '"', LOW_SURROGATE, HIGH_SURROGATE]
)
any_text = st.lists(pieces, max_size=6).map("".join)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


def cleaned(value: Any) -> Any:
    """The value as it should come back: what JSON can't carry replaced, all else as it was."""
    if isinstance(value, str):
        return well_formed(value).replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, float) and value in {float("inf"), float("-inf")}:
        return None
    return value


@given(json_values)
def test_what_goes_in_comes_out(value: Any) -> None:
    encoded = dumps(value)

    assert loads(encoded) == cleaned(value)
    assert loads(dumps_text(value)) == cleaned(value)
    assert b"\\u0000" not in encoded.replace(b"\\\\", b"")


@given(any_text)
def test_text_keeps_all_that_is_well_formed(value: str) -> None:
    made = well_formed(value)

    assert made.encode().decode() == made
    if not any("\ud800" <= letter <= "\udfff" for letter in value):
        assert made == value


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("a\0b", rb'"a\ufffdb"'),
        ("\0\0", rb'"\ufffd\ufffd"'),
        ("\\u0000", rb'"\\u0000"'),
        ("\\\\u0000", rb'"\\\\u0000"'),
        ("\\\0", rb'"\\\ufffd"'),
        ("\\\\\0", rb'"\\\\\ufffd"'),
        ({"\0": ["\0"]}, rb'{"\ufffd":["\ufffd"]}'),
        (f"a{HIGH_SURROGATE}b", '"a\ufffdb"'.encode()),
        (f"{LOW_SURROGATE}", '"\ufffd"'.encode()),
        ("\ud83d" + "\ude00", '"\U0001f600"'.encode()),
        ({HIGH_SURROGATE: (LOW_SURROGATE, 1)}, '{"\ufffd":["\ufffd",1]}'.encode()),
    ],
)
def test_what_json_can_not_carry_is_replaced(value: object, encoded: bytes) -> None:
    assert dumps(value) == encoded


def test_what_is_kept_encoded_takes_its_own_size() -> None:
    tracemalloc.start()
    try:
        kept = [dumps({"text": "Hello."}) for _ in range(100)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 100 * 200
    assert len(kept) == 100


def test_a_record_with_half_a_character_is_encoded_whole() -> None:
    step = Step(0, "model", "m", "pure", "h", "done", {"text": f"a{HIGH_SURROGATE}"})

    assert loads(dumps([step])) == [
        {
            "no": 0,
            "kind": "model",
            "name": "m",
            "effect": "pure",
            "input_hash": "h",
            "status": "done",
            "output": {"text": "a\ufffd"},
        }
    ]


def test_a_record_within_a_record_is_cleaned_too() -> None:
    @dataclass
    class Outer:
        inner: Step
        at: datetime
        id: UUID

    outer = Outer(
        Step(1, "tool", HIGH_SURROGATE, "pure", "", "started"),
        datetime(2030, 1, 2, tzinfo=UTC),
        UUID(int=7),
    )

    assert loads(dumps(outer)) == {
        "inner": {
            "no": 1,
            "kind": "tool",
            "name": "\ufffd",
            "effect": "pure",
            "input_hash": "",
            "status": "started",
            "output": None,
        },
        "at": "2030-01-02T00:00:00+00:00",
        "id": "00000000-0000-0000-0000-000000000007",
    }


@pytest.mark.parametrize("value", [object(), {1: 2}, 2**70, {"set"}])
def test_what_is_no_json_is_an_error(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


@pytest.mark.parametrize("data", [b"", b"{", b"nan", b'"\xff"', '"\ud800"'])
def test_what_is_not_json_is_not_decoded(data: bytes | str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own error is all there is
        loads(data)


@pytest.mark.parametrize(
    "value", ["\0", "\\\0", "\\u0000", HIGH_SURROGATE, "é\U0001f600", "\x7f", "\u2028"]
)
async def test_postgres_keeps_what_was_encoded(db: Database, value: str) -> None:
    row = await db.row(text("select cast(:v as jsonb) as v"), {"v": dumps_text({value: [value]})})

    assert row is not None
    assert row.v == orjson.loads(dumps({value: [value]}))
