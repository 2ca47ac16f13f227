"""What releases before this one do to the tables: their statements, frozen as they were.

A folder holds the texts of `shared/store/{actions,claims,leases,sweeps}.py` as they were when its
schema was the head: of the first release, of the one that made the fleet durable, and of the last
one before this schema. A release that changes the schema puts its predecessor in place of the last.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import TextClause, text

from shared.store.database import AnyRow, Database

FOLDER = Path(__file__).parent
LEASE = 30.0

_CHARACTER = """
    insert into characters (user_id, agent, name, is_default)
    values (:user, 'companion', 'Ember', false) returning id
"""
_SESSION = """
    insert into sessions (user_id, agent, character_id)
    values (:user, 'companion', :character) returning id
"""


@dataclass(frozen=True, slots=True)
class OldClaim:
    """A session under lease of an old worker, and its task."""

    session: UUID
    epoch: int
    token: UUID
    task: UUID
    task_seq: int
    attempt: int
    head: int | None
    steps: Sequence[AnyRow]
    events: Sequence[AnyRow]

    @property
    def fence(self) -> dict[str, Any]:
        return {"session": self.session, "epoch": self.epoch, "token": self.token}


class Release:
    """Gateway and worker of an old release, as far as Postgres sees them."""

    def __init__(self, schema: str, db: Database, user: str = "me") -> None:
        self._folder = FOLDER / f"schema_{schema}"
        self._db = db
        self._user = user

    def _text(self, name: str) -> TextClause:
        return text((self._folder / f"{name}.sql").read_text())

    # Gateway

    async def session(self) -> UUID:
        """A session without a task."""
        of_user = {"user": self._user}
        character = (await self._one(text(_CHARACTER), of_user)).id
        made = await self._one(text(_SESSION), of_user | {"character": character})
        return UUID(str(made.id))

    async def accept(self, session: UUID, words: str = "hi", *, key: str | None = None) -> UUID:
        """The task of an accepted `say`."""
        action = {"type": "say", "text": words}
        row = await self._one(
            self._text("accept"),
            {
                "session": session,
                "user": self._user,
                "key": key,
                "action": json.dumps(action),
                "body_hash": hashlib.sha256(json.dumps(action).encode()).digest(),
                "on_busy": "enqueue",
                "alone": True,
                "most": None,
                "counted": 0,
                "key_id": "",
            },
        )
        return UUID(str(row.id))

    async def cancel(self, task: UUID) -> str:
        """Cancel an open task; the status that it has then."""
        of_task = {"task": task, "user": self._user}
        async with self._db.transaction() as connection:
            await connection.execute(self._text("lock_session_of_task"), of_task)
            row = (await connection.execute(self._text("cancel_task"), of_task)).one()
            if row.status == "cancelled":
                await connection.execute(
                    self._text("terminal_event"), of_task | {"session": row.session_id}
                )
        return str(row.status)

    async def sweep(self) -> list[UUID]:
        """The sessions that are due for a hint."""
        parameters = {"lock": 7_316_205_118, "limit": 200, "grace": 0.0}
        return [row.id for row in await self._db.rows(self._text("sweep"), parameters)]

    # Worker

    async def claim(self, session: UUID) -> OldClaim | None:
        """Take the session and its next task: in one exchange as far as the release could."""
        parameters = {"session": session, "lease_seconds": LEASE, "limit": 100}
        parameters |= {"known": None, "generation": None, "head": None}
        if (self._folder / "claim.sql").exists():
            _, answer = await self._db.together(
                (self._text("lock"), parameters), (self._text("claim"), parameters)
            )
            if (row := answer.first) is None:
                return None
            if not row.more:
                return _old_claim(session, row, row, row.task_id)
        async with self._db.transaction() as connection:
            lease = (await connection.execute(self._text("take_lease"), parameters)).first()
            if lease is None:
                return None
            parameters |= {"epoch": lease.epoch, "back_off": 0.0, "longest": 30.0}
            task = (await connection.execute(self._text("take_task"), parameters)).one()
            task_id = task[0]  # `id` at first, `task_id` later
            of_task = parameters | {
                "task": task_id,
                "task_seq": task.seq,
                "queued_seq": task.queued_seq,
                "head": lease.head_message,
            }
            await connection.execute(self._text("path"), of_task)
            steps = (await connection.execute(self._text("steps_of_task"), of_task)).all()
            events = (await connection.execute(self._text("events_of_task"), of_task)).all()
        return _old_claim(session, lease, task, task_id, steps, events)

    async def write(self, claim: OldClaim, *kinds: str, step: int | None = None) -> bool:
        """Append events of these types, and a finished step; False where the lease was lost."""
        parameters = self._written(claim, kinds, step) | {"lease_seconds": LEASE}
        return await self._db.row(self._text("write"), parameters) is not None

    async def end(self, claim: OldClaim) -> bool:
        """Complete the task with one message; False where the lease was lost."""
        parameters = self._written(claim, ["task_completed"], None) | {
            "status": "completed",
            "messages": json.dumps([{"role": "assistant", "content": str(uuid4())}]),
            "message_count": 1,
            "head": claim.head,
            "state": None,
            "view": None,
            "result": "{}",
            "error": None,
            "usage": None,
            "task_usage": None,
            "joined": [],
            "memories": "[]",
        }
        return await self._db.row(self._text("end"), parameters) is not None

    def _written(self, claim: OldClaim, kinds: Sequence[str], step: int | None) -> dict[str, Any]:
        steps = [
            {
                "no": step,
                "kind": "tool",
                "name": "look",
                "effect": "pure",
                "input_hash": f"hash-{step}",
                "status": "done",
                "output": {"text": "seen"},
            }
        ]
        return claim.fence | {
            "task": claim.task,
            "task_seq": claim.task_seq,
            "event_count": len(kinds),
            "writes": None,
            "finished": step is not None,
            "events": json.dumps([{"type": kind, "data": {}} for kind in kinds]),
            "steps": json.dumps([] if step is None else steps),
        }

    async def heartbeat(self, *claims: OldClaim) -> set[UUID]:
        """Renew the leases; the sessions still held."""
        parameters = {
            "ids": [claim.session for claim in claims],
            "epochs": [claim.epoch for claim in claims],
            "tokens": [claim.token for claim in claims],
            "lease_seconds": LEASE,
        }
        await self._db.run(self._text("heartbeat"), parameters)
        return {row.id for row in await self._db.rows(self._text("still_mine"), parameters)}

    async def release(self, claim: OldClaim) -> bool:
        """Hand the session over."""
        return await self._db.row(self._text("release"), claim.fence | {"uncount": 1}) is not None

    async def _one(self, statement: TextClause, parameters: dict[str, Any]) -> AnyRow:
        row = await self._db.row(statement, parameters)
        assert row is not None
        return row


def _old_claim(
    session: UUID,
    lease: AnyRow,
    task: AnyRow,
    task_id: UUID,
    steps: Sequence[AnyRow] = (),
    events: Sequence[AnyRow] = (),
) -> OldClaim:
    return OldClaim(
        session,
        lease.epoch,
        lease.lease_token,
        task_id,
        task.seq,
        task.claims,
        lease.head_message,
        steps,
        events,
    )
