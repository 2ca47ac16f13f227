"""The way of an action, from the session to the answer, as a client sees it."""

from tests.api.clients import Client
from tests.api.worker import FakeWorker


async def test_a_client_hears_what_the_worker_does(client: Client, worker: FakeWorker) -> None:
    session = await client.session()
    await worker.answer(session["id"], "Welcome!")

    async with client.socket(session["id"], after=0) as socket:
        opening = await socket.until_end()
        accepted = await client.act(session["id"], text="How are you?")
        claim = await worker.answer(session["id"], "Fine, and you?")
        answer = await socket.until_end()

    task = (await client.http.get(f"/v1/tasks/{accepted['task_id']}")).json()
    assert [(frame.get("seq"), frame["type"]) for frame in opening] == [
        (1, "task_queued"),
        (2, "task_started"),
        (3, "agent_start"),
        (4, "message_end"),
        (5, "task_completed"),
    ]
    assert [(f.get("seq"), f["type"], f.get("offset"), f.get("delta")) for f in answer] == [
        (6, "task_queued", None, None),
        (7, "task_started", None, None),
        (8, "agent_start", None, None),
        (None, "message_update", 0, "Fine, a"),
        (None, "message_update", 7, "nd you?"),
        (9, "message_end", None, None),
        (10, "task_completed", None, None),
    ]
    assert str(claim.task_id) == accepted["task_id"]
    assert task["status"] == "completed"
    assert task["result"]["text"] == "Fine, and you?"
