"""Tasks that were given up: which there are, and the same action once more."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from shared.allowance import NO_RULES, BudgetRules
from shared.encoding import JsonObject
from shared.errors import BudgetSpent, InvalidRequest, NotFound
from shared.records import Accepted, NewAction
from shared.store.actions import accept_within
from shared.store.database import Database

_PAGE = text(
    """/* dead tasks page */
    select t.id, t.session_id, t.user_id, s.agent, t.action ->> 'type', t.claims, t.error,
        t.finished_at, array(
            select r.id from tasks r
            where r.session_id = t.session_id and r.requeue_of = t.id order by r.seq)
    from tasks t join sessions s on s.id = t.session_id
    where t.status = 'dead'
    order by t.finished_at desc
    limit :limit
    """
)

_LOCK_SESSION = text(
    """/* dead task lock session */
    select id from sessions where id = (select session_id from tasks where id = :task)
    for no key update
    """
)

_TASK = text(
    """/* dead task */
    select session_id, user_id, key_id, action, status,
        (select r.id from tasks r where r.session_id = t.session_id and r.requeue_of = t.id
         order by r.seq desc limit 1) as again
    from tasks t where id = :task
    """
)

_NOTE = text("/* dead task note requeue */ update tasks set requeue_of = :task where id = :again")

_COUNT = text("/* dead tasks count */ select count(*) from tasks where status = 'dead'")


@dataclass(frozen=True, slots=True)
class DeadTask:
    """A task that was given up; `requeued` are the tasks that got its action again."""

    task_id: UUID
    session_id: UUID
    user_id: str
    agent: str
    action_type: str
    claims: int
    error: JsonObject | None
    finished_at: datetime
    requeued: list[UUID]


async def page(db: Database, *, limit: int) -> list[DeadTask]:
    """Dead tasks, the newest first."""
    return [DeadTask(*row) for row in await db.rows(_PAGE, {"limit": limit})]


async def requeue(
    db: Database, task_id: UUID, rules: BudgetRules = NO_RULES, *, again: bool = False
) -> Accepted:
    """Accept a dead task's action as a new task of its session; the dead one stays as it is.

    Args:
        rules: what may be spent by those who have no budget of their own: it is paid as any is.
        again: also where that was done before.

    Raises:
        NotFound: there is no such task.
        InvalidRequest: it is not dead, or it was requeued before.
        BudgetSpent: nothing is left to pay it from.
    """
    async with db.transaction() as connection:
        # Before the task is read: of two who requeue it at once the second sees the first's.
        locked = await connection.execute(_LOCK_SESSION, {"task": task_id})
        if locked.first() is None:
            raise NotFound(f"there is no task {task_id}")
        task = (await connection.execute(_TASK, {"task": task_id})).one()
        if task.status != "dead":
            raise InvalidRequest(f"task {task_id} is not dead but {task.status}")
        if task.again is not None and not again:
            raise InvalidRequest(f"task {task_id} was requeued before, as {task.again}")
        action = NewAction(task.action, key_id=task.key_id)
        paid = "line" in task.action  # of a batch: its answer stands in the ledger
        try:
            accepted = await accept_within(
                connection, task.user_id, task.session_id, action, rules=rules, paid=paid
            )
        except BudgetSpent as error:
            raise BudgetSpent(f"the budget for task {task_id} is spent") from error
        await connection.execute(_NOTE, {"task": task_id, "again": accepted.task_id})
        return accepted


async def count(db: Database) -> int:
    """How many tasks are dead."""
    row = await db.row(_COUNT)
    return 0 if row is None else int(row[0])
