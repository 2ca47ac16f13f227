"""What a token costs: tables of dated prices, read once when a worker starts.

The table of this release stands beside this module, with its source and date; an operator's own
goes before it, model by model. A model that neither knows has no price, which is not the same as
costing nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from shared.errors import PricesError

SHIPPED = Path(__file__).with_name("prices.json")

LARGEST_FILE = 4 * 1024 * 1024
"""Bytes of a table of prices at the most."""

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens of each kind; `version` names the table it stands in."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    version: str

    def usd(self, *, input: int, output: int, cache_read: int = 0, cache_write: int = 0) -> Decimal:  # noqa: A002 - the word for it
        """What so many tokens cost, to the last digit."""
        return (
            input * self.input
            + output * self.output
            + cache_read * self.cache_read
            + cache_write * self.cache_write
        ) / _MILLION


class PriceTable:
    """The prices of models by their names, `provider/id`, each from a day on.

    Args:
        otherwise: asked for models that this table does not have.
    """

    def __init__(
        self,
        dated: Mapping[str, Sequence[tuple[date, Price]]] | None = None,
        otherwise: "PriceTable | None" = None,
    ) -> None:
        self._otherwise = otherwise
        self._dated = {
            model: sorted(prices, key=lambda one: one[0], reverse=True)
            for model, prices in (dated or {}).items()
        }

    @property
    def models(self) -> frozenset[str]:
        """The names of all models that have a price on some day."""
        others = frozenset() if self._otherwise is None else self._otherwise.models
        return others | frozenset(self._dated)

    def price(self, model: str, on: date) -> Price | None:
        """The price of a model on a day, in UTC; None where it has none, or none yet."""
        if self._otherwise is not None and model not in self._dated:
            return self._otherwise.price(model, on)
        return next((one for since, one in self._dated.get(model, ()) if since <= on), None)


def load_prices(own: Path | None) -> PriceTable:
    """The release's table under the operator's own.

    Raises:
        PricesError: the operator's file can't be read, or is no table of prices.
    """
    shipped = read_prices(SHIPPED.read_bytes())
    if own is None:
        return shipped
    try:
        with own.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise PricesError(f"FIRESIDE_PRICES: can't be read: {error.strerror}") from error
    return read_prices(content, shipped)


def read_prices(content: bytes, otherwise: PriceTable | None = None) -> PriceTable:
    """Read a table from its JSON.

    Args:
        otherwise: the table for models that are not in it.

    Raises:
        PricesError: the message says what is wrong, and where.
    """
    if len(content) > LARGEST_FILE:
        raise PricesError(f"FIRESIDE_PRICES: has more than {LARGEST_FILE} bytes")
    try:
        found = json.loads(
            content, object_pairs_hook=_object, parse_float=Decimal, parse_constant=_refuse
        )
        table = _Table.model_validate(found)
    except ValidationError as error:
        raise PricesError(f"FIRESIDE_PRICES: {_first_of(error)}") from None
    except RecursionError:
        raise PricesError("FIRESIDE_PRICES: is nested too deep") from None
    except ValueError as error:
        raise PricesError(f"FIRESIDE_PRICES: is no JSON table: {error}") from None
    return PriceTable(
        {
            model: [(one.valid_from, one.price(table.version)) for one in entries]
            for model, entries in table.models.items()
        },
        otherwise,
    )


def _first_of(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in wrong["loc"])
    return f"{place}: {wrong['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _iso_date(value: object) -> object:
    # A number would be taken for seconds since 1970.
    if not isinstance(value, str):
        raise ValueError("must be a date, as 2026-01-31")  # noqa: TRY004 - pydantic's way
    return value


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic's way
    return value


_Usd = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, le=1_000_000)]
_Model = Annotated[str, StringConstraints(pattern=r"^[!-.0-~]+/[!-~]+$", max_length=200)]
_Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _Entry(_Part):
    """A model's price from a day on. A kind of reading or writing the cache that has no price of
    its own costs what input costs."""

    valid_from: Annotated[date, BeforeValidator(_iso_date)]
    input: _Usd
    output: _Usd
    cache_read: _Usd | None = None
    cache_write: _Usd | None = None

    def price(self, version: str) -> Price:
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        return Price(self.input, self.output, read, write, version)


class _Table(_Part):
    version: _Version
    source: Annotated[str, Field(max_length=1000)] = ""
    unit: Literal["US dollars for a million tokens"]
    models: dict[_Model, Annotated[list[_Entry], Field(min_length=1)]]

    @model_validator(mode="after")
    def _one_price_a_day(self) -> Self:
        for model, entries in self.models.items():
            if len({one.valid_from for one in entries}) < len(entries):
                raise ValueError(f"{model}: two prices are valid from the same day")
        return self
