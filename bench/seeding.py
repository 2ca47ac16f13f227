"""Sessions with a past, written straight into Postgres: what would take players days."""

from dataclasses import dataclass

import psycopg
from psycopg.types.json import Jsonb

from agent_core import AssistantMessage, TextContent, UserMessage

AGENT = "companion"
EVENTS_PER_TASK = 4
QUESTION = "What did the keeper see from the tower on the night of the storm?"
ANSWER = "Two lanterns far out, and between them nothing that a lantern could hang on. " * 3

# Each has a character of its own, as players have.
_SESSIONS = """
    with made as (
        insert into characters (user_id, agent, name)
        select %(user)s, %(agent)s, 'Ash' from generate_series(1, %(sessions)s)
        returning id
    ), souls as (
        insert into souls (character_id, version, soul) select id, 1, '' from made
    )
    insert into sessions (user_id, agent, character_id, title, next_task, next_event,
        next_message, head_message)
    select %(user)s, %(agent)s, made.id, 'seeded', %(turns)s + 1, %(turns)s * %(each)s + 1,
        %(turns)s * 2 + 1, nullif(%(turns)s * 2, 0)
    from made
    returning id
"""

_TASKS = """
    insert into tasks (session_id, seq, user_id, action, body_hash, queued_seq, position, status,
        claims, attempts, result, started_at, finished_at)
    select s.id, t.seq, s.user_id, jsonb_build_object('type', 'say', 'text', %(question)s::text),
        '', (t.seq - 1) * %(each)s + 1, 0, 'completed', 1, 1, '{}', now(), now()
    from sessions s, generate_series(1, %(turns)s) as t(seq)
    where s.id = any(%(ids)s)
"""

_EVENTS = """
    insert into events (session_id, seq, task_id, type, data)
    select t.session_id, t.queued_seq + e.place - 1, t.id, e.type,
        case e.type when 'message_end' then jsonb_build_object('message', %(answer)s::jsonb)
                    else '{}' end
    from tasks t, unnest(array['task_queued', 'task_started', 'message_end', 'task_completed'])
        with ordinality as e(type, place)
    where t.session_id = any(%(ids)s)
"""

_MESSAGES = """
    insert into messages (session_id, no, parent, task_id, message)
    select t.session_id, m.no, nullif(m.no - 1, 0), t.id,
        case m.no %% 2 when 1 then %(question_message)s::jsonb else %(answer)s::jsonb end
    from tasks t, lateral (values (t.seq * 2 - 1), (t.seq * 2)) as m(no)
    where t.session_id = any(%(ids)s)
"""


@dataclass(frozen=True)
class Seeded:
    """Sessions of one user, and the number of the last event in each."""

    ids: list[str]
    head: int

    def spread(self, count: int, batch: int = 0) -> list[str]:
        """So many of them from all over the table; another batch has none of the same."""
        step = max(1, len(self.ids) // count)
        return [self.ids[(number * step + batch) % len(self.ids)] for number in range(count)]


def seed(url: str, user: str, *, sessions: int, history: int) -> Seeded:
    """Write so many sessions with `history` messages each (an even number), all tasks done."""
    turns = history // 2
    question, answer = UserMessage(QUESTION), AssistantMessage([TextContent(ANSWER)], model="seed")
    parameters = {
        "user": user,
        "agent": AGENT,
        "sessions": sessions,
        "turns": turns,
        "each": EVENTS_PER_TASK,
        "question": QUESTION,
        "question_message": Jsonb(question.to_dict()),
        "answer": Jsonb(answer.to_dict()),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        ids = [row[0] for row in connection.execute(_SESSIONS, parameters).fetchall()]
        for statement in (_TASKS, _EVENTS, _MESSAGES):
            connection.execute(statement, parameters | {"ids": ids})
        connection.execute("vacuum (analyze)")
    return Seeded([str(one) for one in ids], turns * EVENTS_PER_TASK)
