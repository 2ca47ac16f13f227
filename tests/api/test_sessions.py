"""Sessions, transcripts, characters and the list of agents over HTTP."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.store.database import Database
from tests.api.clients import Client
from tests.api.worker import FakeWorker


async def test_what_no_worker_announces_any_more_is_not_on_offer(
    client: Client, db: Database
) -> None:
    ago = "clock_timestamp() - interval '121 s'"
    await db.run(
        text(f"update catalog set announced_at = {ago} where name in ('companion', 'sea')")
    )

    listed = (await client.http.get("/v1/agents")).json()["agents"]
    refused = await client.http.post("/v1/sessions", json={"agent": "companion"})

    assert [[one["name"], *(s["name"] for s in one["stories"])] for one in listed] == [
        ["story", "cave"]
    ]
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "agent: there is no such agent",
    )


async def test_agents_are_listed_with_their_stories(client: Client) -> None:
    response = await client.http.get("/v1/agents")

    assert response.json() == {
        "agents": [
            {
                "name": "companion",
                "title": "A companion",
                "description": "Listens.",
                "options": None,
                "stories": [],
            },
            {
                "name": "story",
                "title": "A narrator",
                "description": "Tells.",
                "options": {"type": "object"},
                "stories": [
                    {"name": "cave", "title": "The cave", "description": "Dark."},
                    {"name": "sea", "title": "The sea", "description": "Wet."},
                ],
            },
        ]
    }


async def test_a_session_is_made_with_its_opening_task(client: Client) -> None:
    response = await client.http.post(
        "/v1/sessions",
        json={
            "agent": "story",
            "story": "sea",
            "key": "evening",
            "title": "At sea",
            "metadata": {"lamp": True},
        },
    )
    made = response.json()
    found = (await client.http.get(response.headers["location"])).json()
    log = await client.log(made["id"])

    assert response.status_code == 201
    assert found == {name: value for name, value in made.items() if name != "task_id"}
    assert {name: made[name] for name in ("agent", "story", "key", "title", "metadata")} == {
        "agent": "story",
        "story": "sea",
        "key": "evening",
        "title": "At sea",
        "metadata": {"lamp": True},
    }
    assert (made["status"], made["head_seq"], made["state"], made["choices"]) == (
        "queued",
        1,
        {},
        [],
    )
    assert [(e["type"], e["task_id"], e["data"]["action"]) for e in log] == [
        ("task_queued", made["task_id"], {"type": "start"})
    ]


async def test_a_story_agent_has_a_default_story(client: Client) -> None:
    assert (await client.session(agent="story"))["story"] == "cave"
    assert (await client.session(agent="companion"))["story"] is None


async def test_the_same_key_gives_the_same_session(client: Client) -> None:
    body = {"agent": "companion", "key": "home"}
    first = await client.http.post("/v1/sessions", json=body)
    second = await client.http.post("/v1/sessions", json=body)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


async def test_a_known_key_gives_its_session_whatever_is_on_offer_now(
    client: Client, db: Database
) -> None:
    made = await client.session(agent="story", story="cave", key="home")
    await db.run(text("delete from catalog where kind = 'story'"))
    await asyncio.sleep(1.1)  # for so long the gateway keeps what it has read
    others: list[dict[str, Any]] = [
        {"agent": "story", "story": "cave"},
        {"agent": "story", "story": "nowhere"},
        {"agent": "nobody"},
        {"agent": "story", "character_id": str(uuid4())},
        {"agent": "companion"},
    ]
    again = [
        await client.http.post("/v1/sessions", json={**other, "key": "home"}) for other in others
    ]
    characters = (await client.http.get("/v1/characters")).json()["characters"]

    assert [(one.status_code, one.json()) for one in again] == [(200, made)] * len(others)
    assert [one["agent"] for one in characters] == ["story"]


async def test_state_and_choices_are_the_last_tasks(client: Client, worker: FakeWorker) -> None:
    session = await client.session(agent="story")
    claim = await worker.start(session["id"])
    running = (await client.http.get(f"/v1/sessions/{session['id']}")).json()
    choices = [{"id": "c1", "text": "Go in", "tags": []}]
    await worker.end(claim, view={"state": {"scene": "cave"}, "choices": choices})
    idle = (await client.http.get(f"/v1/sessions/{session['id']}")).json()

    assert running["status"] == "running"
    assert (idle["status"], idle["state"], idle["choices"]) == (
        "idle",
        {"scene": "cave"},
        choices,
    )


async def test_sessions_are_listed_in_pages(client: Client) -> None:
    made = [(await client.session())["id"] for _ in range(5)]
    seen: list[str] = []
    before: dict[str, str] = {}
    while True:
        page = (await client.http.get("/v1/sessions", params={"limit": 2, **before})).json()
        seen += [one["id"] for one in page["sessions"]]
        if page["next"] is None:
            break
        before = {"before": page["next"]}

    assert seen == made[::-1]


async def test_a_deleted_session_is_gone_with_all_it_had(client: Client) -> None:
    session = await client.session(key="home")
    path = f"/v1/sessions/{session['id']}"
    deleted = await client.http.delete(path)
    after = [
        await client.http.get(one)
        for one in (path, f"{path}/events", f"{path}/messages", f"/v1/tasks/{session['task_id']}")
    ]
    again = await client.http.delete(path)
    anew = await client.session(key="home")

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert [one.status_code for one in (*after, again)] == [404] * 5
    assert anew["id"] != session["id"]


async def test_the_transcript_has_what_tasks_wrote(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await worker.answer(session["id"], "Welcome!")
    await client.act(session["id"])
    claim = await worker.answer(session["id"], "Well.")
    path = f"/v1/sessions/{session['id']}/messages"
    messages = (await client.http.get(path)).json()["messages"]
    newest = (await client.http.get(path, params={"limit": 1})).json()["messages"]

    assert [(m["id"], m["parent"], m["message"]["content"]) for m in messages] == [
        (1, None, "Welcome!"),
        (2, 1, "Well."),
    ]
    assert messages[1]["task_id"] == str(claim.task_id)
    assert newest == messages[1:]


async def test_the_transcript_is_read_in_pages(client: Client, worker: FakeWorker) -> None:
    session, other = await client.session(), await client.session()
    claim = await worker.start(session["id"])
    await worker.end(claim, messages=[{"n": number} for number in range(5)])
    path = f"/v1/sessions/{session['id']}/messages"
    pages: list[list[int]] = []
    before: dict[str, int] = {}
    while True:
        page = (await client.http.get(path, params={"limit": 2, **before})).json()
        pages.append([one["id"] for one in page["messages"]])
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    first = await client.http.get(path, params={"before": 1})
    refused = [
        await client.http.get(path, params={"before": 6}),
        await client.http.get(f"/v1/sessions/{other['id']}/messages", params={"before": 2}),
        await client.http.get(path, params={"before": 2**60}),
        await client.http.get(path, params={"before": "x"}),
    ]

    assert pages == [[4, 5], [2, 3], [1]]
    assert first.json() == {"messages": [], "next": None}
    assert [(one.status_code, one.json()["code"]) for one in refused] == [REFUSED] * 4
    assert refused[0].json()["detail"] == "before: there is no such message any more; begin again"


async def test_characters_have_versions_of_their_soul(client: Client) -> None:
    body = {"agent": "companion", "name": "Momo", "soul": "Curious."}
    response = await client.http.post("/v1/characters", json=body)
    made = response.json()
    path = response.headers["location"]
    renamed = (await client.http.patch(path, json={"name": "Mimi"})).json()
    changed = (await client.http.patch(path, json={"soul": "Brave."})).json()
    found = (await client.http.get(path)).json()
    listed = (await client.http.get("/v1/characters")).json()["characters"]

    assert response.status_code == 201
    assert {name: made[name] for name in ("agent", "name", "soul", "soul_version")} == {
        **body,
        "soul_version": 1,
    }
    assert (renamed["name"], renamed["soul_version"]) == ("Mimi", 1)
    assert (changed["soul"], changed["soul_version"]) == ("Brave.", 2)
    assert found == changed == listed[0]


async def test_a_character_that_a_session_uses_stays(client: Client) -> None:
    made = await client.http.post("/v1/characters", json={"agent": "companion", "name": "Momo"})
    session = await client.session(character_id=made.json()["id"])
    path = made.headers["location"]
    used = await client.http.delete(path)
    await client.http.delete(f"/v1/sessions/{session['id']}")
    unused = await client.http.delete(path)

    assert session["character_id"] == made.json()["id"]
    assert (used.status_code, used.json()["code"]) == (409, "session_busy")
    assert unused.status_code == 204
    assert (await client.http.get(path)).status_code == 404


async def test_a_character_belongs_to_one_agent(client: Client) -> None:
    made = await client.http.post("/v1/characters", json={"agent": "companion", "name": "Momo"})
    response = await client.http.post(
        "/v1/sessions", json={"agent": "story", "character_id": made.json()["id"]}
    )

    assert response.status_code == 422


REFUSED = (422, "invalid_request")
JSON_CONTENT = {"Content-Type": "application/json"}

NESTED: Any = {}
for _ in range(400):
    NESTED = {"in": NESTED}


NO_SESSIONS: list[Any] = [
    {},
    {"agent": "nobody"},
    {"agent": ""},
    {"agent": 5},
    {"agent": "comp\0anion"},
    {"agent": "x" * 101},
    {"agent": "companion", "story": "cave"},
    {"agent": "story", "story": "no such story"},
    {"agent": "story", "story": ""},
    {"agent": "story", "story": "../../etc/passwd"},
    {"agent": "companion", "key": ""},
    {"agent": "companion", "key": "a b"},
    {"agent": "companion", "key": "x" * 129},
    {"agent": "companion", "key": "a\n"},
    {"agent": "companion", "character_id": "x"},
    {"agent": "companion", "character_id": str(uuid4())},
    {"agent": "companion", "title": "x" * 201},
    {"agent": "companion", "title": "\0"},
    {"agent": "companion", "title": "\ud800"},
    {"agent": "companion", "metadata": []},
    {"agent": "companion", "metadata": {"a": "\0"}},
    {"agent": "companion", "metadata": {"\0": 1}},
    {"agent": "companion", "metadata": {"a": [{"b": "\udfff"}]}},
    {"agent": "companion", "metadata": {"a": "x" * 17_000}},
    {"agent": "companion", "metadata": NESTED},
    {"agent": "companion", "colour": "red"},
    [],
    "text",
    None,
]


async def test_of_much_nonsense_the_first_is_told(client: Client) -> None:
    nonsense = {f"field {number}": 0 for number in range(10_000)}
    response = await client.http.post("/v1/sessions", json={"agent": "companion", **nonsense})
    problem = response.json()

    assert (response.status_code, problem["code"]) == (422, "invalid_request")
    assert [one["field"] for one in problem["errors"]] == list(nonsense)[:20]
    assert len(response.content) < 5_000


async def test_of_long_nonsense_the_beginning_is_told(client: Client) -> None:
    session = await client.session()
    long = "x" * 50_000
    bodies: list[dict[str, Any]] = [{"type": long}, {"type": "continue", long: 0}]
    path = f"/v1/sessions/{session['id']}/actions"
    answers = [await client.http.post(path, json=body) for body in bodies]
    async with client.socket(session["id"]) as socket:
        await socket.joined()
        for body in bodies:
            await socket.send({"type": "action", "id": "a", "action": body})
        errors = [(await socket.receive())["error"] for _ in bodies]

    assert [(one.status_code, one.json()["code"]) for one in answers] == [REFUSED] * 2
    assert [one["code"] for one in errors] == ["invalid_request"] * 2
    assert max(len(one.content) for one in answers) < 2_000
    assert max(len(one["message"]) for one in errors) < 1_000


async def test_a_session_can_not_be_made_of_nonsense(client: Client) -> None:
    for body in NO_SESSIONS:
        response = await client.http.post(
            "/v1/sessions", content=json.dumps(body), headers=JSON_CONTENT
        )
        assert (response.status_code, response.json()["code"]) == REFUSED, body
    assert (await client.http.get("/v1/sessions")).json()["sessions"] == []


NO_NUMBERS = ["NaN", "-Infinity", "1e999", f"{2**63}", f"{-(2**63) - 1}", '[1, {"a": 1E400}]']


@pytest.mark.parametrize("number", NO_NUMBERS)
async def test_a_number_that_can_not_be_kept_is_refused(client: Client, number: str) -> None:
    content = f'{{"agent": "companion", "metadata": {{"n": {number}}}}}'
    response = await client.http.post("/v1/sessions", content=content, headers=JSON_CONTENT)

    assert (response.status_code, response.json()["code"]) == REFUSED
    assert "metadata" in response.json()["detail"]


async def test_the_largest_numbers_are_kept(client: Client) -> None:
    largest = {"n": [2**63 - 1, -(2**63), 1.5e308, True]}
    made = await client.session(metadata=largest)

    assert (await client.http.get(f"/v1/sessions/{made['id']}")).json()["metadata"] == largest


async def test_a_page_after_one_that_is_gone_is_refused(client: Client) -> None:
    made = [(await client.session())["id"] for _ in range(3)]
    page = (await client.http.get("/v1/sessions", params={"limit": 1})).json()
    await client.http.delete(f"/v1/sessions/{page['next']}")
    response = await client.http.get("/v1/sessions", params={"before": page["next"]})
    end = await client.http.get("/v1/sessions", params={"before": made[0]})

    assert (response.status_code, response.json()["code"]) == REFUSED
    assert "begin again" in response.json()["detail"]
    assert (end.status_code, end.json()) == (200, {"sessions": [], "next": None})


NO_CHARACTERS: list[Any] = [
    {"agent": "companion"},
    {"agent": "nobody", "name": "Momo"},
    {"agent": "companion", "name": ""},
    {"agent": "companion", "name": " \t\u3000"},
    {"agent": "companion", "name": "x" * 101},
    {"agent": "companion", "name": "Mo\0mo"},
    {"agent": "companion", "name": "Momo", "soul": 5},
    {"agent": "companion", "name": "Momo", "is_default": True},
]


async def test_a_character_can_not_be_made_of_nonsense(client: Client) -> None:
    for body in NO_CHARACTERS:
        response = await client.http.post("/v1/characters", json=body)
        assert (response.status_code, response.json()["code"]) == REFUSED, body


async def test_limits_of_texts_are_told_in_characters(client: Client) -> None:
    session = await client.session()
    long_name = {"agent": "companion", "name": "x" * 101}
    large_soul = {"agent": "companion", "name": "Momo", "soul": "x" * 20_001}
    told = {
        "/v1/characters": [(long_name, 422, "100"), (large_soul, 413, "20000")],
        "/v1/sessions": [({"agent": "companion", "title": "x" * 201}, 422, "200")],
        f"/v1/sessions/{session['id']}/actions": [
            ({"type": "say", "text": "x" * 16_001}, 413, "16000"),
            ({"type": "choose", "choice_id": "x" * 501}, 422, "500"),
        ],
        "/v1/memories/search": [({"text": "x" * 501}, 422, "500")],
    }
    codes = {413: "payload_too_large", 422: "invalid_request"}
    for path, cases in told.items():
        for body, status, limit in cases:
            problem = (await client.http.post(path, json=body)).json()
            assert (problem["status"], problem["code"]) == (status, codes[status])
            assert problem["detail"].endswith(f" have at most {limit} characters")


NO_PAGES = [
    "/v1/sessions?limit=0",
    "/v1/sessions?limit=101",
    "/v1/sessions?limit=x",
    "/v1/sessions?before=x",
    "/v1/characters?limit=0",
    "/v1/characters?limit=1000000",
]


async def test_pages_have_bounds(client: Client) -> None:
    for path in NO_PAGES:
        response = await client.http.get(path)
        assert (response.status_code, response.json()["code"]) == REFUSED, path


async def test_what_no_id_can_be_is_not_found(client: Client) -> None:
    for prefix in ("/v1/sessions/", "/v1/tasks/", "/v1/characters/"):
        for name in ("x", "%00", "..%2F..%2Fetc", str(uuid4()), "1" * 5000, "%ff"):
            response = await client.http.get(prefix + name)
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), name
