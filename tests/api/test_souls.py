"""Souls over HTTP."""

from typing import Any

from tests.api.clients import Client


async def soul_path(client: Client, soul: str = "Kind.") -> str:
    body = {"agent": "companion", "name": "Momo", "soul": soul}
    made = (await client.http.post("/v1/characters", json=body)).json()
    return f"/v1/characters/{made['id']}/soul"


async def test_a_soul_is_read_edited_and_rolled_back(client: Client) -> None:
    path = await soul_path(client)

    read = (await client.http.get(path)).json()
    put = await client.http.put(path, json={"soul": "Brave.", "expected_version": 1})
    late = await client.http.put(path, json={"soul": "Sly.", "expected_version": 1})
    edits = [{"section": "Speech", "text": "Slow."}]
    patched = (await client.http.patch(path, json={"edits": edits})).json()
    undone = (await client.http.post(f"{path}/rollback", json={})).json()
    back = (await client.http.post(f"{path}/rollback", json={"version": 1})).json()

    assert (read["version"], read["soul"], read["source"]) == (1, "Kind.", "user")
    assert (put.status_code, put.json()["version"]) == (200, 2)
    assert (late.status_code, late.json()["code"]) == (409, "version_conflict")
    assert patched["soul"] == "Brave.\n\n## Speech\nSlow."
    assert (undone["soul"], undone["restored"]) == ("Brave.", 2)
    assert (back["version"], back["soul"], back["source"]) == (5, "Kind.", "restored")
    first = (await client.http.get(f"{path}/versions", params={"limit": 3})).json()
    rest = (await client.http.get(f"{path}/versions", params={"before": first["next"]})).json()
    assert [one["version"] for one in first["versions"] + rest["versions"]] == [5, 4, 3, 2, 1]
    assert rest["next"] is None
    assert (await client.http.get(f"{path}/versions/3")).json() == patched
    assert (await client.http.get(path.removesuffix("/soul"))).json()["soul_version"] == 5


async def test_a_soul_that_is_too_large_is_refused(client: Client) -> None:
    path = await soul_path(client)
    character = path.removesuffix("/soul")
    large: list[tuple[str, str, Any]] = [
        ("put", path, {"soul": "x" * 1_000_000, "expected_version": 1}),
        ("put", path, {"soul": "x" * 20_001, "expected_version": 1}),
        ("patch", path, {"edits": [{"section": "a", "text": "x" * 20_001}]}),
        ("patch", path, {"edits": [{"section": "a", "text": "x" * 20_000}]}),
        ("patch", character, {"soul": "x" * 20_001}),
    ]
    for method, url, body in large:
        response = await client.http.request(method, url, json=body)
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    assert (await client.http.get(path)).json()["version"] == 1


async def test_nonsense_is_refused(client: Client) -> None:
    path = await soul_path(client)
    nonsense: list[tuple[str, str, Any]] = [
        ("put", path, {"soul": "x"}),
        ("put", path, {"soul": "x", "expected_version": 0}),
        ("put", path, {"soul": "x", "expected_version": True}),
        ("put", path, {"soul": "x", "expected_version": "1"}),
        ("put", path, {"soul": "x", "expected_version": 2**63}),
        ("put", path, {"soul": "a\0b", "expected_version": 1}),
        ("put", path, {"soul": None, "expected_version": 1}),
        ("patch", path, {"edits": []}),
        ("patch", path, {"edits": [{"section": "", "text": "x"}]}),
        ("patch", path, {"edits": [{"section": "a", "text": "## b"}]}),
        ("patch", path, {"edits": [{"section": "a\nb", "text": "x"}]}),
        ("patch", path, {"edits": [{"section": "a", "text": "x"}] * 51}),
        ("post", f"{path}/rollback", {"version": "one"}),
        ("post", f"{path}/rollback", {}),
        ("get", f"{path}/versions?limit=0", None),
        ("get", f"{path}/versions?before=0", None),
        ("get", f"{path}/versions?before={2**31}", None),
    ]
    for method, where, body in nonsense:
        response = await client.http.request(method, where, json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request"), body
    for where in (f"{path}/versions/2", f"{path}/versions/0", f"{path}/versions/x"):
        assert (await client.http.get(where)).status_code == 404
    gone = await client.http.post(f"{path}/rollback", json={"version": 9})
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
