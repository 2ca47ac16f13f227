"""Sessions with a past, written straight into Postgres: what would take players days."""

from dataclasses import dataclass

import psycopg
from psycopg.types.json import Jsonb

from agent_core import AssistantMessage, TextContent, UserMessage
from shared.memories import of_messages
from shared.store.memories import WORDS

AGENT = "companion"
NAME = "Ash"
EVENTS_PER_TASK = 4
QUESTION = "What did the keeper see from the tower on the night of the storm?"
UNREAD = 10
"""Messages at the end of each session that no consolidation has read yet, the most of them: its
next one comes after as many turns, however long the session is."""

ANSWER = "Two lanterns far out, and between them nothing that a lantern could hang on. " * 3

# Each has a character of its own, as players have. What is old was consolidated long ago, as in
# each session that has lived: else the first turn would bring a reading of all its past.
_SESSIONS = """
    with made as (
        insert into characters (user_id, agent, name)
        select %(user)s, %(agent)s, %(name)s from generate_series(1, %(sessions)s)
        returning id
    ), souls as (
        insert into souls (character_id, version, soul) select id, 1, '' from made
    )
    insert into sessions (user_id, agent, character_id, title, next_task, next_event,
        next_message, head_message, consolidated)
    select %(user)s, %(agent)s, made.id, 'seeded', %(turns)s + 1, %(turns)s * %(each)s + 1,
        %(turns)s * 2 + 1, nullif(%(turns)s * 2, 0), %(consolidated)s
    from made
    returning id
"""

# No two questions of a session are alike, and each has a word that players say again; nor are two
# answers, for what the window shows word for word is not told as a memory.
_SAID = "%(question)s || ' Question ' || t.seq || '.'"
_ANSWERED = "%(answer)s || 'Night ' || t.seq || '.'"

_TASKS = f"""
    insert into tasks (session_id, seq, user_id, action, body_hash, queued_seq, position, status,
        claims, attempts, result, started_at, finished_at)
    select s.id, t.seq, s.user_id, jsonb_build_object('type', 'say', 'text', {_SAID}),
        '', (t.seq - 1) * %(each)s + 1, 0, 'completed', 1, 1, '{{}}', now(), now()
    from sessions s, generate_series(1, %(turns)s) as t(seq)
    where s.id = any(%(ids)s)
"""

_ANSWER_MESSAGE = f"""
    jsonb_set(%(answer_message)s, '{{content,0,text}}', to_jsonb({_ANSWERED}))"""

_EVENTS = f"""
    insert into events (session_id, seq, task_id, type, data)
    select t.session_id, t.queued_seq + e.place - 1, t.id, e.type,
        case e.type when 'message_end' then jsonb_build_object('message', {_ANSWER_MESSAGE})
                    else '{{}}' end
    from tasks t, unnest(array['task_queued', 'task_started', 'message_end', 'task_completed'])
        with ordinality as e(type, place)
    where t.session_id = any(%(ids)s)
"""

_MESSAGES = f"""
    insert into messages (session_id, no, parent, task_id, message)
    select t.session_id, m.no, nullif(m.no - 1, 0), t.id,
        case m.no %% 2
            when 1 then jsonb_set(%(question_message)s, '{{content}}', to_jsonb({_SAID}))
            else {_ANSWER_MESSAGE} end
    from tasks t, lateral (values (t.seq * 2 - 1), (t.seq * 2)) as m(no)
    where t.session_id = any(%(ids)s)
"""

# What the ends of these tasks would have written; vectors come from another process, if at all.
# The words of a session's texts are made once, and stand in all sessions.
_MEMORIES = f"""
    with said as materialized (
        select t.seq, m.ord, m.part, m.role, m.speaker, m.text, m.language,
            {WORDS} as words
        from generate_series(1, %(turns)s) as t(seq), lateral (
            select ord, part, role, speaker, language, spelled, signs,
                case role when 'user' then {_SAID} else {_ANSWERED} end as text
            from jsonb_to_recordset(%(memories)s) as (ord integer, part smallint, role text,
                speaker text, language text, spelled text, signs text[])) as m
    )
    insert into memories (user_id, character_id, session_id, kind, no, part, sources, role, speaker,
        text, language, words, said_at, valid_from)
    select s.user_id, s.character_id, s.id, 'turn', m.no, said.part, array[m.no], said.role,
        said.speaker, said.text, said.language, said.words,
        now() - make_interval(mins => %(turns)s - said.seq), now()
    from sessions s, said, lateral (values ((said.seq - 1) * 2 + said.ord)) as m(no)
    where s.id = any(%(ids)s)
    order by said.seq, s.id, said.ord
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
    """Write so many sessions with `history` messages each (an even number), all tasks done and all
    that was said remembered."""
    turns = history // 2
    question, answer = UserMessage(QUESTION), AssistantMessage([TextContent(ANSWER)], model="seed")
    said = of_messages([question.to_dict(), answer.to_dict()], {"name": NAME}, {})
    parameters = {
        "user": user,
        "agent": AGENT,
        "name": NAME,
        "sessions": sessions,
        "turns": turns,
        "consolidated": max(0, turns * 2 - UNREAD),
        "each": EVENTS_PER_TASK,
        "question": QUESTION,
        "question_message": Jsonb(question.to_dict()),
        "answer": ANSWER,
        "answer_message": Jsonb(answer.to_dict()),
        "memories": Jsonb(said),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        ids = [row[0] for row in connection.execute(_SESSIONS, parameters).fetchall()]
        for statement in (_TASKS, _EVENTS, _MESSAGES, _MEMORIES):
            connection.execute(statement, parameters | {"ids": ids})
        connection.execute("vacuum (analyze)")
    return Seeded([str(one) for one in ids], turns * EVENTS_PER_TASK)
