"""Reads the tables at the end of a run, by plain SQL."""

from typing import Any

import psycopg
from psycopg.rows import tuple_row

from tests.chaos.history import EventRow, MessageRow, SessionRow, Tables, TaskRow

_SESSIONS = """
    select id::text, next_event::int, open_tasks, head_message::int, state, view from sessions
    order by created_at, id
"""
_TASKS = """
    select session_id::text, seq::int, id::text, client_action_id, status, on_busy,
        queued_seq::int, cancel_requested_at is not null
    from tasks order by session_id, seq
"""
_EVENTS = """
    select session_id::text, seq::int, task_id::text, type, data,
        extract(epoch from at)::float8
    from events order by session_id, seq
"""
_MESSAGES = """
    select session_id::text, no::int, parent::int, task_id::text, message
    from messages order by session_id, no
"""


def read_tables(url: str) -> Tables:
    """All sessions with what belongs to them, as of one moment."""
    with psycopg.connect(url, row_factory=tuple_row, connect_timeout=5) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def rows(statement: Any) -> list[tuple[Any, ...]]:
            return connection.execute(statement).fetchall()

        return Tables(
            [SessionRow(*row) for row in rows(_SESSIONS)],
            [TaskRow(*row) for row in rows(_TASKS)],
            [EventRow(*row) for row in rows(_EVENTS)],
            [MessageRow(*row) for row in rows(_MESSAGES)],
        )
