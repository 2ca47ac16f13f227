"""Columns that travel in one piece: every value comes back as it went, on the real Postgres."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from shared.store import columns
from shared.store.database import Database

LONG_AGO = datetime(1969, 7, 20, 20, 17, 40, 123457, UTC)
LATER = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)

ALL = (
    columns.texts("t"),
    columns.shorts("s"),
    columns.longs("l"),
    columns.reals("r"),
    columns.doubles("d"),
    columns.times("at"),
)

ROWS = text(
    f"""
    select {columns.packed(ALL)} from (values
        ('', '-32768'::smallint, '-9223372036854775808'::bigint, 0.5::real,
         'NaN'::float8, cast(:long_ago as timestamptz)),
        (E'two\\nlines', 1::smallint, 3::bigint, 0::real, 0.1::float8,
         cast(:later as timestamptz)),
        ('\U0001f600 \u00fc', 32767::smallint, 9223372036854775807::bigint, -2::real,
         -1e300::float8, cast(:at as timestamptz))
    ) as rows(t, s, l, r, d, at) where cast(:any as boolean)
    """.replace("::", "\\:\\:")
)


async def read(db: Database, *, binary: bool, some: bool = True) -> list[list[object]]:
    parameters = {"long_ago": LONG_AGO, "later": LATER, "at": at(), "any": some}
    (row,) = await db.rows(ROWS, parameters, binary=binary)
    return [list(values) for values in columns.unpacked(ALL, row)]


def at() -> datetime:
    return datetime(2026, 5, 7, 12, tzinfo=UTC) + timedelta(microseconds=1)


async def test_values_come_back_as_they_went(db: Database) -> None:
    for binary in (True, False):
        texts, shorts, longs, reals, doubles, times = await read(db, binary=binary)

        assert texts == ["", "two\nlines", "\U0001f600 \u00fc"]
        assert shorts == [-32768, 1, 32767]
        assert longs == [-(2**63), 3, 2**63 - 1]
        assert reals == [0.5, 0.0, -2.0]
        assert [str(one) for one in doubles] == ["nan", "0.1", "-1e+300"]
        assert times == [LONG_AGO, LATER, at()]


async def test_no_rows_are_no_values(db: Database) -> None:
    assert await read(db, binary=True, some=False) == [[]] * len(ALL)
