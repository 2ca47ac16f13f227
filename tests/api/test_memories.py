"""Memories over HTTP."""

from typing import Any
from uuid import UUID

import pytest

from shared.memories import NewMemory
from shared.store import memories
from shared.store.database import Database
from tests.api.clients import Client


@pytest.fixture
async def kept(client: Client, db: Database) -> dict[str, Any]:
    """A session whose character has two memories; `ids` are theirs."""
    session = await client.session()
    new = [NewMemory("fact", "lives in Vienna", UUID(session["id"]), sources=[1])]
    new.append(NewMemory("preference", "likes tea"))
    ids = await memories.add(db, "local", UUID(session["character_id"]), new)
    return session | {"ids": [str(one) for one in ids]}


async def test_memories_are_listed_searched_changed_and_deleted(
    client: Client, kept: dict[str, Any]
) -> None:
    fact, tea = kept["ids"]
    http = client.http

    listed = (await http.get("/v1/memories", params={"limit": 1})).json()
    rest = (await http.get("/v1/memories", params={"before": listed["next"]})).json()
    both = listed["memories"] + rest["memories"]
    assert {one["id"] for one in both} == {fact, tea}
    assert rest["next"] is None
    kinds = {"kind": ["fact", "skill"], "character_id": kept["character_id"]}
    facts = (await http.get("/v1/memories", params=kinds)).json()["memories"]
    assert [one["id"] for one in facts] == [fact]
    search = {"text": "living somewhere", "language": "en-GB", "session_id": kept["id"]}
    (found,) = (await http.post("/v1/memories/search", json=search)).json()["memories"]
    assert (found["id"], found["text"], found["sources"]) == (fact, "lives in Vienna", [1])
    assert (await http.get(f"/v1/memories/{fact}")).json() == found

    patch = {"text": " lives \n in Graz ", "importance": 1, "valid": False}
    changed = (await http.patch(f"/v1/memories/{fact}", json=patch)).json()
    assert (changed["text"], changed["importance"]) == ("lives in Graz", 1.0)
    assert changed["valid_to"] is not None
    assert [one["id"] for one in (await http.get("/v1/memories")).json()["memories"]] == [tea]
    closed = (await http.get("/v1/memories", params={"closed": True})).json()["memories"]
    assert len(closed) == 2

    assert (await http.delete(f"/v1/memories/{fact}")).status_code == 204
    assert (await http.get(f"/v1/memories/{fact}")).status_code == 404
    all_of = {"character_id": kept["character_id"]}
    assert (await http.delete("/v1/memories", params=all_of)).json() == {"deleted": 1}


NONSENSE: list[tuple[str, str, Any]] = [
    ("get", "?limit=0", None),
    ("get", "?limit=201", None),
    ("get", "?kind=turns", None),
    ("get", "?before=x", None),
    ("get", "?closed=perhaps", None),
    ("get", "?" + "&".join(["kind=fact"] * 7), None),
    ("post", "/search", {}),
    ("post", "/search", {"text": " "}),
    ("post", "/search", {"text": "x" * 501}),
    ("post", "/search", {"text": "a\0b"}),
    ("post", "/search", {"text": "a", "limit": 101}),
    ("post", "/search", {"text": "a", "limit": "5"}),
    ("post", "/search", {"text": "a", "limit": True}),
    ("post", "/search", {"text": "a", "kinds": []}),
    ("post", "/search", {"text": "a", "language": 7}),
    ("post", "/search", {"text": "a", "colour": "red"}),
    ("patch", "/ID", {}),
    ("patch", "/ID", {"text": ""}),
    ("patch", "/ID", {"text": "x" * 1001}),
    ("patch", "/ID", {"importance": 1.5}),
    ("patch", "/ID", {"importance": "high"}),
    ("patch", "/ID", {"importance": "0.5"}),
    ("patch", "/ID", {"importance": True}),
    ("patch", "/ID", {"valid": "perhaps"}),
    ("patch", "/ID", {"user_id": "me"}),
    ("delete", "", None),
    ("delete", "?character_id=x", None),
]


async def test_nonsense_is_refused(client: Client, kept: dict[str, Any]) -> None:
    for method, path, body in NONSENSE:
        url = "/v1/memories" + path.replace("ID", kept["ids"][0])
        response = await client.http.request(method, url, json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request"), url
    odd = {"text": "hello", "language": "x'; drop table memories"}
    assert (await client.http.post("/v1/memories/search", json=odd)).status_code == 200
    large = await client.http.patch(
        f"/v1/memories/{kept['ids'][0]}", json={"text": "x" * 2_000_000}
    )
    assert (large.status_code, large.json()["code"]) == (413, "payload_too_large")
    listed = (await client.http.get("/v1/memories")).json()["memories"]
    assert sorted(one["text"] for one in listed) == ["likes tea", "lives in Vienna"]
