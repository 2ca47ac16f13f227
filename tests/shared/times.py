"""The database's clock, by which the times in its rows are told."""

from datetime import datetime
from typing import cast

from sqlalchemy import text

from shared.store.database import Database


async def now(db: Database) -> datetime:
    """What the clock says: what a statement sets lies between what it said before and says
    after it, however long that took."""
    row = await db.row(text("select clock_timestamp() as now"))
    assert row is not None
    return cast("datetime", row.now)
