"""What must hold in the tables at every moment, whatever happened before."""

from sqlalchemy import text

from shared.store.database import Database

_RULES = {
    "open_tasks is not the number of open tasks": """
        select s.id from sessions s where s.open_tasks <> (
            select count(*) from tasks t
            where t.session_id = s.id and t.status in ('queued', 'running'))
    """,
    "two tasks of a session are running": """
        select session_id from tasks where status = 'running'
        group by session_id having count(*) > 1
    """,
    "events are not numbered 1, 2, 3, ...": """
        select s.id from sessions s where s.next_event - 1 <> (
            select count(*) from events e where e.session_id = s.id)
        or s.next_event - 1 <> (
            select coalesce(max(seq), 0) from events e where e.session_id = s.id)
    """,
    "tasks are not numbered 1, 2, 3, ...": """
        select s.id from sessions s where s.next_task - 1 <> (
            select count(*) from tasks t where t.session_id = s.id)
        or s.next_task - 1 <> (
            select coalesce(max(seq), 0) from tasks t where t.session_id = s.id)
    """,
    "messages are not numbered 1, 2, 3, ...": """
        select s.id from sessions s where s.next_message - 1 <> (
            select count(*) from messages m where m.session_id = s.id)
        or s.next_message - 1 <> (
            select coalesce(max(no), 0) from messages m where m.session_id = s.id)
    """,
    "early_cancels is not the number of early cancels": """
        select s.id from sessions s where s.early_cancels <> (
            select count(*) from early_cancels c where c.session_id = s.id)
    """,
    "a task's terminal event is not exactly its last": """
        select t.id from tasks t
        left join events e on e.task_id = t.id
        group by t.id, t.status
        having count(*) filter (
            where e.type in ('task_completed', 'task_failed', 'task_cancelled', 'task_dead'))
            <> case when t.status in ('queued', 'running') then 0 else 1 end
        or t.status not in ('queued', 'running')
            and max(e.seq) <> max(e.seq) filter (where e.type = 'task_' || t.status)
    """,
    "a task does not begin with its task_queued": """
        select t.id from tasks t where not exists (
            select from events e where e.session_id = t.session_id and e.seq = t.queued_seq
            and e.task_id = t.id and e.type = 'task_queued')
    """,
    "something belongs to no session": """
        select session_id from (
            select session_id from events union select session_id from messages
            union select session_id from steps) as x
        where not exists (select from sessions s where s.id = x.session_id)
    """,
}


async def broken(db: Database) -> list[tuple[str, str]]:
    """The rules that don't hold, each with the id of a row that breaks it."""
    found = []
    for rule, statement in _RULES.items():
        found += [(rule, str(row[0])) for row in await db.rows(text(statement))]
    return found
