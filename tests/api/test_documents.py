"""The OpenAPI and AsyncAPI documents say what the gateway does."""

import re
from typing import Any, get_args

from jsonschema import Draft202012Validator

from api import problems
from api.schemas import CLIENT_FRAME
from shared.events import EventType
from tests.api.clients import Client
from tests.api.frames import document, validator
from tests.api.worker import FakeWorker


async def test_every_answer_is_as_openapi_describes_it(client: Client, worker: FakeWorker) -> None:
    openapi = (await client.http.get("/openapi.json")).json()
    session = await client.session(key="home", agent="story")
    await worker.answer(session["id"])
    path = f"/v1/sessions/{session['id']}"
    task = f"/v1/tasks/{session['task_id']}"
    character = f"/v1/characters/{session['character_id']}"
    no_memory = f"/v1/memories/{session['id']}"
    say = {"type": "say", "text": "Hello", "client_action_id": "a"}
    calls: list[tuple[str, str, str, Any, int]] = [
        ("get", "/healthz", "/healthz", None, 200),
        ("get", "/readyz", "/readyz", None, 200),
        ("get", "/readyz", "/readyz?for=traffic", None, 200),
        ("get", "/readyz", "/readyz?for=tea", None, 422),
        ("get", "/v1/agents", "/v1/agents", None, 200),
        ("post", "/v1/sessions", "/v1/sessions", {"agent": "companion"}, 201),
        ("post", "/v1/sessions", "/v1/sessions", {"agent": "story", "key": "home"}, 200),
        ("post", "/v1/sessions", "/v1/sessions", {}, 422),
        ("get", "/v1/sessions", "/v1/sessions", None, 200),
        ("get", "/v1/sessions/{session_id}", path, None, 200),
        ("get", "/v1/sessions/{session_id}", "/v1/sessions/x", None, 404),
        ("get", "/v1/sessions/{session_id}/events", f"{path}/events", None, 200),
        ("get", "/v1/sessions/{session_id}/messages", f"{path}/messages", None, 200),
        ("post", "/v1/sessions/{session_id}/actions", f"{path}/actions", say, 202),
        ("post", "/v1/sessions/{session_id}/actions", f"{path}/actions", say, 200),
        (
            "post",
            "/v1/sessions/{session_id}/actions",
            f"{path}/actions",
            say | {"text": "Bye"},
            409,
        ),
        (
            "post",
            "/v1/sessions/{session_id}/cancel",
            f"{path}/cancel",
            {"client_action_id": "b"},
            202,
        ),
        ("get", "/v1/tasks/{task_id}", task, None, 200),
        ("post", "/v1/tasks/{task_id}/cancel", f"{task}/cancel", None, 202),
        ("get", "/v1/characters", "/v1/characters", None, 200),
        (
            "post",
            "/v1/characters",
            "/v1/characters",
            {"agent": "companion", "name": "Momo"},
            201,
        ),
        ("get", "/v1/characters/{character_id}", character, None, 200),
        ("patch", "/v1/characters/{character_id}", character, {"name": "Mimi"}, 200),
        ("delete", "/v1/characters/{character_id}", character, None, 409),
        ("get", "/v1/characters/{character_id}/soul", f"{character}/soul", None, 200),
        (
            "put",
            "/v1/characters/{character_id}/soul",
            f"{character}/soul",
            {"soul": "Kind.", "expected_version": 1},
            200,
        ),
        (
            "put",
            "/v1/characters/{character_id}/soul",
            f"{character}/soul",
            {"soul": "Sly.", "expected_version": 1},
            409,
        ),
        (
            "patch",
            "/v1/characters/{character_id}/soul",
            f"{character}/soul",
            {"edits": [{"section": "Speech", "text": "Slow."}]},
            200,
        ),
        (
            "post",
            "/v1/characters/{character_id}/soul/rollback",
            f"{character}/soul/rollback",
            {},
            200,
        ),
        (
            "get",
            "/v1/characters/{character_id}/soul/versions",
            f"{character}/soul/versions",
            None,
            200,
        ),
        (
            "get",
            "/v1/characters/{character_id}/soul/versions/{version}",
            f"{character}/soul/versions/1",
            None,
            200,
        ),
        ("post", "/v1/ws-tickets", "/v1/ws-tickets", None, 200),
        ("get", "/v1/memories", "/v1/memories", None, 200),
        ("get", "/v1/memories", "/v1/memories?limit=0", None, 422),
        ("post", "/v1/memories/search", "/v1/memories/search", {"text": "hello"}, 200),
        ("get", "/v1/memories/{memory_id}", "/v1/memories/x", None, 404),
        (
            "patch",
            "/v1/memories/{memory_id}",
            f"/v1/memories/{session['id']}",
            {"valid": True},
            404,
        ),
        ("delete", "/v1/memories/{memory_id}", no_memory, None, 404),
        (
            "delete",
            "/v1/memories",
            f"/v1/memories?character_id={session['character_id']}",
            None,
            200,
        ),
        ("get", "/v1/me/export", "/v1/me/export", None, 200),
        ("get", "/v1/usage", "/v1/usage", None, 200),
        ("get", "/v1/usage", "/v1/usage?since=soon", None, 422),
        (
            "post",
            "/api/story/action",
            "/api/story/action",
            {"session_id": "home", "user_input": "Go"},
            200,
        ),
        (
            "get",
            "/api/story/status/{task_id}",
            f"/api/story/status/{session['task_id']}",
            None,
            200,
        ),
        ("delete", "/v1/sessions/{session_id}", path, None, 204),
        ("delete", "/v1/me", "/v1/me", None, 200),
    ]
    for method, template, url, body, status in calls:
        response = await client.http.request(method, url, json=body)
        assert response.status_code == status, (url, response.text)
        described = openapi["paths"][template][method]["responses"][str(status)]
        if status != 204:
            media_type = response.headers["content-type"].partition(";")[0]
            schema = described["content"][media_type]["schema"]
            whole = {**schema, "components": openapi["components"]}
            Draft202012Validator(whole).validate(response.json())
    assert {(method, template) for method, template, *_ in calls} == {
        (method, template) for template, methods in openapi["paths"].items() for method in methods
    }


async def test_openapi_promises_no_other_errors(client: Client) -> None:
    openapi = (await client.http.get("/openapi.json")).json()

    assert "HTTPValidationError" not in str(openapi)
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            problem = [
                status
                for status, response in operation["responses"].items()
                if "ProblemBody" in str(response)
            ]
            assert all(status >= "400" for status in problem)
            if path.startswith("/v1/"):
                assert {"401", "503"} <= set(problem)
                assert operation["security"]


def test_asyncapi_is_well_formed() -> None:
    found = document()

    def resolve(reference: str) -> Any:
        node: Any = found
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        return node

    for reference in re.findall(r"'\$ref': '([^']+)'", str(found)):
        assert resolve(reference)
    assert found["asyncapi"] == "3.0.0"
    for name, schema in found["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name[0].isupper()


def test_asyncapi_knows_the_events_and_the_codes() -> None:
    schemas = document()["components"]["schemas"]
    codes = schemas["ErrorFrame"]["properties"]["error"]["properties"]["code"]["enum"]

    assert schemas["EventFrame"]["properties"]["type"]["enum"] == list(get_args(EventType))
    assert set(codes) <= set(problems.STATUSES)


def test_asyncapi_and_the_gateway_agree_on_client_frames() -> None:
    say = {"type": "say", "text": "Hello"}
    uuid = "00000000-0000-0000-0000-000000000007"
    good: list[dict[str, Any]] = [
        {"type": "auth", "ticket": "t"},
        {"type": "action", "id": "a", "action": say},
        {"type": "action", "id": "a", "action": say | {"on_busy": "interrupt"}},
        {"type": "action", "id": "a", "action": say | {"on_busy": "steer"}},
        {"type": "action", "id": "a", "action": say | {"on_busy": "follow_up"}},
        {"type": "action", "id": "a", "action": say | {"on_busy": "collect"}},
        {"type": "action", "id": "a", "action": {"type": "choose", "choice_id": "c"}},
        {"type": "action", "id": "a", "action": {"type": "continue", "client_action_id": "a"}},
        {"type": "cancel", "task_id": uuid},
        {"type": "cancel", "client_action_id": "a"},
        {"type": "pong"},
    ]
    bad: list[dict[str, Any]] = [
        {"type": "auth"},
        {"type": "action", "action": say},
        {"type": "action", "id": "a b", "action": say},
        {"type": "action", "id": "a", "action": say | {"text": ""}},
        {"type": "action", "id": "a", "action": say | {"text": "x" * 16_001}},
        {"type": "action", "id": "a", "action": say | {"on_busy": "hop"}},
        {"type": "action", "id": "a", "action": {"type": "start"}},
        {"type": "action", "id": "a", "action": {"type": "choose"}},
        {"type": "pong", "more": 1},
        {"type": "sing"},
    ]
    assert [validator("ClientFrame").is_valid(frame) for frame in good + bad] == [True] * len(
        good
    ) + [False] * len(bad)
    for frame in good:
        CLIENT_FRAME.validate_python(frame)
    for frame in bad:
        try:
            CLIENT_FRAME.validate_python(frame)
        except ValueError:
            continue
        raise AssertionError(frame)
