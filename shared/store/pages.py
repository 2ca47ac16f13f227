"""Pages of a list: each goes on behind a row that the one before has shown."""

from collections.abc import Awaitable

from shared.errors import InvalidRequest, NotFound


async def check_before(row: Awaitable[object], kind: str) -> None:
    """See that the row is there behind which an empty page would have gone on.

    Raises:
        InvalidRequest: it was deleted meanwhile, and with it its place in the list.
    """
    try:
        await row
    except NotFound as error:
        raise InvalidRequest(f"before: there is no such {kind} any more; begin again") from error
