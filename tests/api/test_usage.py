"""`GET /v1/usage`, and actions that are refused because a budget is spent."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shared.allowance import Budget
from shared.records import Claim, LedgerEntry
from shared.settings import Settings
from shared.store import api_keys, budgets, claims, leases
from shared.store.database import Database
from tests.api.clients import Client
from tests.api.conftest import serving
from tests.clients import http_client
from tests.shared.sessions import completed

ENTRY = LedgerEntry(
    no=0,
    model="openai/gpt-5-mini",
    purpose="reply",
    outcome="done",
    reported=True,
    input=100,
    output=20,
    cache_read=50,
    cache_write=5,
    usd=Decimal("0.25"),
    prices="fireside-2026",
    mark_up=Decimal(2),
)


async def used(db: Database, session: dict[str, Any], *entries: LedgerEntry) -> Claim:
    """The session's open task is run with these calls."""
    claim = await claims.claim(db, session["id"], lease_seconds=30, history=10)
    assert claim is not None
    await leases.write(db, claim, [], [], lease_seconds=30, ledger=entries)
    await leases.end(db, claim, completed())
    return claim


async def usage(http: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    response = await http.get("/v1/usage", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_usage_by_day_agent_and_model(client: Client, db: Database) -> None:
    session, other = await client.session(), await client.session(agent="story")
    claim = await used(db, session, ENTRY)
    unknown = LedgerEntry(0, "openai/new", "judge", "done", reported=True, input=7)
    await used(db, other, unknown)

    now = datetime.now(UTC)
    # Where it is about noon, so that no day ends meanwhile.
    east = 12 - now.hour
    zone = f"Etc/GMT{-east:+d}"
    found = await usage(client.http, zone=zone)

    today = (now + timedelta(hours=east)).date()
    assert (found["since"], found["until"]) == (str(today - timedelta(days=29)), str(today))
    assert found["zone"] == zone
    assert found["budgets"] == []
    assert found["total"] == {
        "calls": 2,
        "unreported_calls": 0,
        "unpriced_calls": 1,
        "input": 107,
        "output": 20,
        "cache_read": 50,
        "cache_write": 5,
        "cost_usd": 0.25,
        "estimated_usd": 0.0,
        "billed_usd": 0.5,
    }
    assert [(row["day"], row["agent"], row["model"]) for row in found["rows"]] == [
        (str(today), "companion", "openai/gpt-5-mini"),
        (str(today), "story", "openai/new"),
    ]
    assert [row["cost_usd"] for row in found["rows"]] == [0.25, None]
    assert [row["billed_usd"] for row in found["rows"]] == [0.5, None]
    unasked = await usage(client.http)
    assert unasked["zone"] == "UTC"
    assert str(now.date()) <= unasked["until"] <= str(datetime.now(UTC).date())
    by_purpose = await usage(client.http, by="purpose")
    assert [(row["purpose"], row["calls"]) for row in by_purpose["rows"]] == [
        ("judge", 1),
        ("reply", 1),
    ]
    of_session = await usage(client.http, session_id=session["id"], by="")
    assert (of_session["total"]["calls"], of_session["rows"]) == (1, [])
    assert (await usage(client.http, task_id=str(claim.task_id)))["total"]["calls"] == 1


async def test_nobody_used_anything_yet(client: Client) -> None:
    found = await usage(client.http, since="2026-01-01", until="2026-12-31", zone="Asia/Tokyo")

    assert found["rows"] == []
    assert (found["total"]["calls"], found["total"]["cost_usd"]) == (0, 0.0)


@pytest.mark.parametrize(
    "query",
    [
        {"since": "yesterday"},
        {"since": "0"},
        {"since": "1767225600"},
        {"since": "2026-02-30"},
        {"since": "20260101"},
        {"since": "2026-W05-6"},
        {"since": "2026-01-01T00:00:00Z"},
        {"since": "\u0662\u0660\u0662\u0666-01-01"},
        {"since": "0001-01-01", "until": "0001-01-02"},
        {"since": "9999-12-31", "until": "9999-12-31"},
        {"since": "2026-01-02", "until": "2026-01-01"},
        {"since": "2026-01-01", "until": "2027-01-02"},
        {"since": "2999-01-01"},
        {"zone": "Mars/Olympus"},
        {"zone": "../../etc/passwd"},
        {"zone": "Europe"},
        {"zone": ""},
        {"zone": "UTC+1"},
        {"zone": "localtime"},
        {"zone": "a\0b"},
        {"by": "user_id"},
        {"by": "day;drop table usage"},
        {"session_id": "x"},
        {"task_id": "x"},
    ],
)
async def test_bad_questions(client: Client, query: dict[str, str]) -> None:
    response = await client.http.get("/v1/usage", params=query)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.fixture
async def guarded(settings: Settings, db: Database) -> AsyncIterator[str]:
    changed = settings.model_copy(update={"auth": "required", "budget_per_key": "1/day"})
    async with serving(changed) as url:
        yield url


Clients = Callable[[str], Awaitable[tuple[str, Client]]]
"""Makes a client of a user, with a key of its own; and the key's id."""


@pytest.fixture
async def client_of(db: Database, guarded: str) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as opened:

        async def make(user: str) -> tuple[str, Client]:
            key_id, key = await api_keys.create(db, user)
            headers = {"Authorization": f"Bearer {key}"}
            http = http_client(guarded, headers=headers)
            return str(key_id), Client(await opened.enter_async_context(http), guarded)

        yield make


async def test_a_key_whose_budget_is_spent_is_refused(db: Database, client_of: Clients) -> None:
    key_id, spender = await client_of("me")
    _, saver = await client_of("me")
    session = await spender.session()
    dear = replace(ENTRY, no=1, usd=Decimal(1), mark_up=Decimal(1))
    claim = await used(db, session, ENTRY, dear)

    assert claim.key_id == key_id
    path = f"/v1/sessions/{session['id']}/actions"
    refused = await spender.http.post(path, json={"type": "say", "text": "Hello"})
    body = refused.json()
    assert (refused.status_code, body["code"]) == (402, "budget_spent")
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert body["retry_after"] == int(refused.headers["retry-after"])
    other = await spender.http.post("/v1/sessions", json={"agent": "companion"})
    assert other.status_code == 402
    story = {"session_id": "new", "user_input": "Go"}
    assert (await spender.http.post("/api/story/action", json=story)).status_code == 402
    ticket = (await spender.http.post("/v1/ws-tickets")).json()["ticket"]
    async with spender.socket(session["id"]) as socket:
        await socket.send({"type": "auth", "ticket": ticket})
        say = {"type": "say", "text": "Hello"}
        await socket.send({"type": "action", "id": "a", "action": say})
        error = (await socket.until("error"))[-1]["error"]
    assert error["code"] == "budget_spent"
    assert error["retry_after"] > 0

    assert (await saver.act(session["id"]))["status"] == "queued"
    mine, others = await usage(spender.http), await usage(saver.http)
    assert mine["total"] == others["total"]
    assert [(one["of"], one["period"], one["left_usd"]) for one in mine["budgets"]] == [
        ("key", "day", 0.0)
    ]
    assert others["budgets"][0]["reserved_usd"] == 1.5  # what a task of this user cost so far
    text = (await spender.http.get("/metrics")).text
    assert "fireside_actions_unpaid_total 4.0" in text


async def test_a_budget_that_does_not_renew_names_no_time(db: Database, client_of: Clients) -> None:
    await budgets.put(db, "me", Budget(Decimal(0)))
    _, client = await client_of("me")

    refused = await client.http.post("/v1/sessions", json={"agent": "companion"})

    assert (refused.status_code, refused.json()["code"]) == (402, "budget_spent")
    assert "retry-after" not in refused.headers


async def test_usage_is_of_the_caller_only(db: Database, client_of: Clients) -> None:
    _, me = await client_of("me")
    _, other = await client_of("other")
    session = await me.session()
    await used(db, session, ENTRY)

    assert (await usage(me.http))["total"]["calls"] == 1
    assert (await usage(other.http))["total"]["calls"] == 0
    assert (await usage(other.http, session_id=session["id"]))["total"]["calls"] == 0


async def test_calls_without_a_price_show_in_the_metrics(client: Client, db: Database) -> None:
    await used(db, await client.session(), LedgerEntry(0, "m/m", "reply", "done", reported=True))

    assert "fireside_model_calls_unpriced 1.0" in (await client.http.get("/metrics")).text
