"""What releases before this one do to the tables: their statements, frozen as they were.

A folder holds the texts of `shared/store/{leases,actions}.py` of the last release whose head was
that schema. A release that changes the schema adds a folder for the one before, and drops the
oldest of more than two.
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
        parameters = {"lock": 7_316_205_118, "limit": 200}
        return [row.id for row in await self._db.rows(self._text("sweep"), parameters)]

    # Worker

    async def claim(self, session: UUID) -> OldClaim | None:
        """Take the session and its next task."""
        async with self._db.transaction() as connection:
            parameters = {"session": session, "lease_seconds": LEASE}
            lease = (await connection.execute(self._text("take_lease"), parameters)).first()
            if lease is None:
                return None
            parameters = {"session": session, "epoch": lease.epoch}
            task = (await connection.execute(self._text("take_task"), parameters)).one()
            of_task = {
                "session": session,
                "task": task.id,
                "task_seq": task.seq,
                "queued_seq": task.queued_seq,
                "head": lease.head_message,
                "limit": 100,
            }
            await connection.execute(self._text("path"), of_task)
            steps = (await connection.execute(self._text("steps_of_task"), of_task)).all()
            events = (await connection.execute(self._text("events_of_task"), of_task)).all()
        return OldClaim(
            session,
            lease.epoch,
            lease.lease_token,
            task.id,
            task.seq,
            task.claims,
            lease.head_message,
            steps,
            events,
        )

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
        return await self._db.row(self._text("release"), claim.fence) is not None

    async def _one(self, statement: TextClause, parameters: dict[str, Any]) -> AnyRow:
        row = await self._db.row(statement, parameters)
        assert row is not None
        return row
