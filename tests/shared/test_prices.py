"""Tables of prices: the release's own, an operator's, and what is none."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from deploy.price_table import MODELS, price_of, public_table
from shared.errors import PricesError, SettingsError
from shared.prices import SHIPPED, Price, load_prices, read_prices

TODAY = date(2026, 11, 21)

ENTRY: dict[str, Any] = {"valid_from": "2026-01-01", "input": 1, "output": 2.5}


def table(models: object = None, **changes: object) -> bytes:
    found = {
        "version": "mine-1",
        "unit": "US dollars for a million tokens",
        "models": {"a/b": [ENTRY]} if models is None else models,
    }
    return json.dumps({k: v for k, v in (found | changes).items() if v != "absent"}).encode()


def test_the_table_of_the_release_is_the_public_one() -> None:
    prices, public = load_prices(None), public_table()

    shipped = json.loads(SHIPPED.read_text())["models"]
    for model in MODELS:
        (entry,) = shipped[model]
        assert entry == {"valid_from": "2026-01-01", **price_of(model, public)}
    assert prices.price("openai/gpt-5-mini", TODAY) is not None
    assert prices.price("openai/gpt-5-mini", date(2025, 12, 31)) is None


def test_tokens_are_priced_to_the_last_digit() -> None:
    price = load_prices(None).price("openai/gpt-5-mini", TODAY)

    assert price is not None
    assert price.usd(input=1, output=1, cache_read=1) == Decimal("0.000002275")


def test_a_price_holds_from_its_day_on() -> None:
    prices = read_prices(table({"a/b": [{**ENTRY, "valid_from": "2026-06-01", "input": 9}, ENTRY]}))

    found = [prices.price("a/b", day) for day in (date(2026, 5, 31), date(2026, 6, 1))]
    assert [one and one.input for one in found] == [1, 9]
    assert prices.price("a/b", date(2025, 12, 31)) is None
    assert prices.price("a/c", TODAY) is None


def test_a_cache_without_a_price_of_its_own_costs_what_input_costs() -> None:
    price = read_prices(table()).price("a/b", TODAY)

    assert price is not None
    assert price == Price(Decimal(1), Decimal("2.5"), Decimal(1), Decimal(1), "mine-1")


def test_an_operators_prices_go_first(tmp_path: Path) -> None:
    own = tmp_path / "prices.json"
    own.write_bytes(table({"openai/gpt-5-mini": [{**ENTRY, "valid_from": "2026-10-01"}]}))
    prices = load_prices(own)

    mine = prices.price("openai/gpt-5-mini", TODAY)
    other = prices.price("openai/gpt-5", TODAY)
    assert mine is not None
    assert other is not None
    assert (mine.version, other.version[:9]) == ("mine-1", "fireside-")
    # The operator has this model, so the release's older price is not used instead.
    assert prices.price("openai/gpt-5-mini", date(2026, 5, 1)) is None
    assert {"openai/gpt-5", "openai/gpt-5-mini"} <= prices.models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON table"),
        (b"\xff\xfe", "is no JSON table"),
        (b"[]", "dictionary"),
        (b"[" * 100_000, "is"),
        (table("absent"), "models: Field required"),
        (table(version="a b"), "version: "),
        (table(version="absent"), "version: Field required"),
        (table(unit="euros"), "unit: "),
        (table(unit="absent"), "unit: Field required"),
        (table(more=1), "more: Extra inputs"),
        (table({"gpt-5": [ENTRY]}), "models.gpt-5"),
        (table({"a/b": []}), "models.a/b: "),
        (table({"a/b": [{**ENTRY, "valid_from": 1767225600}]}), "must be a date"),
        (table({"a/b": [{**ENTRY, "valid_from": "soon"}]}), "valid_from: "),
        (table({"a/b": [{**ENTRY, "valid_from": "2026-01-01T12:00:00+02:00"}]}), "valid_from: "),
        (table({"a/b": [{**ENTRY, "input": "1"}]}), "must be a number"),
        (table({"a/b": [{**ENTRY, "input": True}]}), "must be a number"),
        (table({"a/b": [{**ENTRY, "input": -1}]}), "greater than or equal to 0"),
        (table({"a/b": [{**ENTRY, "input": 10**9}]}), "less than or equal to 1000000"),
        (table({"a/b": [{**ENTRY, "input": None}]}), "must be a number"),
        (table({"a/b": [{**ENTRY, "output": float("nan")}]}), "NaN is no number"),
        (table({"a/b": [{**ENTRY, "output": float("inf")}]}), "Infinity is no number"),
        (table({"a/b": [ENTRY, ENTRY]}), "two prices are valid from the same day"),
        (b'{"version": "a", "version": "b"}', "'version' stands there twice"),
        (b" " * (4 * 1024 * 1024 + 1), "has more than"),
    ],
)
def test_what_is_no_table(content: bytes, message: str) -> None:
    with pytest.raises(PricesError, match=r"^FIRESIDE_PRICES: ") as error:
        read_prices(content)

    assert message in str(error.value)
    assert isinstance(error.value, SettingsError)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PricesError, match=r"FIRESIDE_PRICES: can't be read: "):
            load_prices(path)
