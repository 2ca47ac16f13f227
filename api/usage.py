"""What the caller's tasks used and cost, and what may still be spent."""

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Annotated, cast, get_args
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from fastapi import APIRouter
from pydantic import BeforeValidator
from starlette.responses import Response

from api import budgets, problems, replies
from api.access import KeyId, User
from api.gateway import Parts
from api.schemas import UsageBody
from shared.encoding import JsonObject
from shared.errors import InvalidRequest
from shared.store import usage
from shared.store.usage import Part, UsageSum

router = APIRouter(tags=["Usage"])

MAX_DAYS = 366
"""The longest time that one answer is about."""

_USUAL_DAYS = 30
_YEARS = range(2000, 3000)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PARTS = get_args(Part)


def _day(value: object) -> object:
    # A bare number would be taken for seconds since 1970, a time for its day in some zone.
    if not isinstance(value, str) or _DAY.fullmatch(value) is None:
        raise ValueError("must be a date, as 2026-01-31")
    day = date.fromisoformat(value)
    if day.year not in _YEARS:
        raise ValueError("must be in this millennium")
    return day


Day = Annotated[date, BeforeValidator(_day)]


@router.get(
    "/v1/usage",
    response_model=UsageBody,
    responses=problems.responses("unauthorized", "invalid_request", "unavailable"),
)
async def get_usage(
    parts: Parts,
    user: User,
    key_id: KeyId,
    since: Day | None = None,
    until: Day | None = None,
    zone: str = "UTC",
    by: str = "day,agent,model",
    session_id: UUID | None = None,
    task_id: UUID | None = None,
) -> Response:
    """What the caller used from one day to another, both included, told apart by `by`.

    `by` is a list of `day`, `agent`, `model` and `purpose`, with commas; `zone` says in which zone
    days are counted, by its IANA name. Without days it is the last thirty.
    """
    place = _zone(zone)
    chosen = _chosen(by)
    last = until or datetime.now(place).date()
    first = since or last - timedelta(days=_USUAL_DAYS - 1)
    if not first <= last < first + timedelta(days=MAX_DAYS):
        raise InvalidRequest(f"since: must be at most {MAX_DAYS - 1} days before `until`")
    sums = await usage.sums(
        parts.db,
        user,
        since=_begin_of(first, place),
        before=_begin_of(last + timedelta(days=1), place),
        zone=zone,
        session_id=session_id,
        task_id=task_id,
        by=chosen,
    )
    return replies.ok(
        {
            "since": first,
            "until": last,
            "zone": zone,
            "total": _body(sums.total),
            "rows": [
                {part: getattr(row, part) for part in _PARTS if part in chosen} | _body(row)
                for row in sums.rows
            ],
            "budgets": [budgets.body(one) for one in await budgets.of_caller(parts, user, key_id)],
        }
    )


def _chosen(by: str) -> list[Part]:
    words = [word.strip() for word in by.split(",") if word.strip()]
    if not set(words) <= set(_PARTS):
        raise InvalidRequest(f"by: must be a list of {', '.join(_PARTS)}")
    return cast("list[Part]", words)


def _zone(name: str) -> ZoneInfo:
    if name not in _zones():
        raise InvalidRequest("zone: must be the IANA name of a time zone, as Europe/Berlin")
    return ZoneInfo(name)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones()) - {"localtime"}  # a machine's own, not Postgres's


def _begin_of(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def _body(found: UsageSum) -> JsonObject:
    # Nothing is known of the cost where no call had a price; no calls cost nothing.
    known = found.usd is not None or not found.calls
    return {
        "calls": found.calls,
        "unreported_calls": found.unreported,
        "unpriced_calls": found.unpriced,
        "input": found.input,
        "output": found.output,
        "cache_read": found.cache_read,
        "cache_write": found.cache_write,
        "cost_usd": float(found.usd or 0) if known else None,
        "estimated_usd": float(found.estimated_usd) if known else None,
        "billed_usd": float(found.billed_usd) if known else None,
    }
