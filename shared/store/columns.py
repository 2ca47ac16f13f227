"""Columns of an answer that travel in one piece each, for answers of thousands of rows.

A row of a dozen values costs Postgres, the line and this process more for its frames than for what
it says: a thousand rows come in some thirty pieces, for each of which the loop wakes up.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the aggregate that packs it, and what reads it again. No value may be null.

    Each aggregate takes the rows in the same order, so that the values at one place are one row's.
    """

    sql: str
    read: Callable[[Any], Sequence[Any]]


def texts(value: str) -> Column:
    """A column of texts; a NUL, which Postgres has in no text, stands between them."""
    return Column(f"string_agg(textsend({value}), '\\x00')", _texts)


def shorts(value: str) -> Column:
    """A column of `smallint`."""
    return Column(f"string_agg(int2send({value}), '')", _numbers("h"))


def longs(value: str) -> Column:
    """A column of `bigint`."""
    return Column(f"string_agg(int8send({value}), '')", _numbers("q"))


def reals(value: str) -> Column:
    """A column of `real`."""
    return Column(f"string_agg(float4send({value}), '')", _numbers("f"))


def doubles(value: str) -> Column:
    """A column of `double precision`."""
    return Column(f"string_agg(float8send({value}), '')", _numbers("d"))


def uuids(value: str) -> Column:
    """A column of `uuid`, read as their 16 bytes each."""
    return Column(f"string_agg(uuid_send({value}), '')", split_keys)


def times(value: str) -> Column:
    """A column of `timestamptz`, which the driver makes times of faster than anything here."""
    return Column(f"array_agg({value})", list)


def packed(columns: Iterable[Column], *, of: str = "true") -> str:
    """The columns as a statement selects them, of the rows for which a condition is true."""
    return ", ".join(f"{column.sql} filter (where {of})" for column in columns)


def unpacked(columns: Iterable[Column], row: Iterable[Any]) -> list[Sequence[Any]]:
    """The values of each column; what has no row has no value either."""
    return [
        () if data is None else column.read(data) for column, data in zip(columns, row, strict=True)
    ]


def _texts(data: bytes) -> Sequence[str]:
    return data.decode().split("\0")


def split_keys(data: bytes) -> Sequence[bytes]:
    """The 16 bytes of each `uuid` that stands in these."""
    return struct.unpack("16s" * (len(data) // 16), data)


def _numbers(form: str) -> Callable[[bytes], Sequence[Any]]:
    size = struct.calcsize(f">{form}")

    def read(data: bytes) -> Sequence[Any]:
        return struct.unpack(f">{len(data) // size}{form}", data)

    return read
