"""That Postgres can be split by user: no statement looks for rows of more than one of its parts.

What a statement reads is taken from its plan: each scan of a table that would be split has to go by
the session's id, or by the user's.
"""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.shared.statements import statements

SPLIT = {
    "budgets",
    "characters",
    "crowds",
    "early_cancels",
    "events",
    "memories",
    "messages",
    "sessions",
    "souls",
    "spending",
    "steps",
    "tasks",
    "usage",
}
"""Tables whose rows lie with their user."""

APART = {
    # The same in all parts, or beside them: found before a user is known.
    "api_keys",
    "catalog",
    # What looks after one whole Postgres, and is run on each.
    "batches",
    "clock",
    "dead_tasks",
    "lineage",
    "quarantine",
    "retention",
    "sweeps",
    "traces",
}
"""Modules whose statements are about a part of the fleet, not about a session."""

EXCEPTIONS = {
    # Lists of sessions that the caller holds, follows or sweeps, and it does so on one part.
    "heartbeat",
    "pulse",
    "heads",
    "turns",
    # The task of a session that the caller holds.
    "forgive",
    # One session at a time of this part, and this part has a process of its own for it.
    "claim quarantine lock",
    "claim quarantined lease",
    "claim quarantined made",
    # The limit of open tasks is a part's, and so are its figures and whether it knows budgets.
    "open in all",
    "waiting in all",
    "usage without price",
    "budgets any",
    # What is due in this part, whose workers do it.
    "consolidation due",
    # A part has a process of its own that makes its vectors.
    "vectors missing",
    "vectors stale",
    "vectors sample",
    "vectors put",
    "words page",
    "words owners",
    "words anew",
    # These read no table.
    "memories query",
    "recall wander",
}

_BOUND = re.compile(r"(?<![:\w]):(\w+)")
_OWN = ("Index Cond", "Recheck Cond", "Filter")
_OF_JOINS = ("Join Filter", "Hash Cond", "Merge Cond")
# By `ctid` are found the rows that another part of the same statement has found before.
_KEYS = re.compile(r"\b(session_id|user_id|character_id|id|ctid) = ")


def named() -> Iterator[tuple[str, str, str]]:
    """The module, the name and the text of each statement of the store.

    The name is what the statement calls itself in its comment, or else that of its constant.
    """
    for one in statements():
        name = one.name or f"{one.module}.{one.constant}"
        yield one.module, name + one.place, one.text


CHECKED = {
    name: text for module, name, text in named() if name not in EXCEPTIONS and module not in APART
}


@pytest.mark.parametrize("name", CHECKED)
def test_names_the_session_or_the_user(name: str) -> None:
    # A character is its user's, and its id was found by the user's.
    assert {"session", "user", "character"} & set(_BOUND.findall(CHECKED[name]))


def test_reads_split_tables_by_their_keys(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        crossing = {name: crossed(text, connection) for name, text in CHECKED.items()}

    assert {name: found for name, found in crossing.items() if found} == {}


def test_an_exception_is_a_statement() -> None:
    assert {name for _, name, _ in named()} >= EXCEPTIONS


def test_the_check_sees_what_reads_the_sessions_of_all(postgres_url: str) -> None:
    text = next(text for _, name, text in named() if name == "sweep")
    with psycopg.connect(postgres_url) as connection:
        assert crossed(text, connection)


def test_the_hot_path_is_checked() -> None:
    hot = {"claim", "claim lease", "claim path"}
    hot |= {f"{name}[{kind}]" for name in ("accept", "write", "end") for kind in (False, True)}

    assert hot <= CHECKED.keys()


def crossed(text: str, connection: psycopg.Connection) -> list[tuple[str, str]]:
    """The tables of which a statement would read the rows of all, with its conditions."""
    found = scans(plan_of(text, connection))
    return [(table, conditions) for table, conditions in found if not _KEYS.search(conditions)]


def plan_of(text: str, connection: psycopg.Connection) -> Any:
    """The statement's plan for any values."""
    names = list(dict.fromkeys(_BOUND.findall(text)))
    numbered = _BOUND.sub(lambda found: f"${names.index(found[1]) + 1}", text)
    row = connection.execute(f"explain (generic_plan, format json) {numbered}").fetchone()
    assert row is not None
    return row[0][0]["Plan"]


def scans(node: Any, joined: str = "") -> Iterator[tuple[str, str]]:
    """Each split table that a plan reads, and the conditions that its rows meet.

    What an `insert` writes it names itself. A join's condition holds for both of its sides.
    """
    if node.get("Relation Name") in SPLIT and node["Node Type"] != "ModifyTable":
        yield node["Relation Name"], f"{_said(node, _OWN)} {joined}"
    below = _said(node, _OF_JOINS) or joined
    for child in node.get("Plans", []):
        apart = child.get("Parent Relationship") in {"InitPlan", "SubPlan"}
        yield from scans(child, "" if apart else below)


def _said(node: Any, kinds: tuple[str, ...]) -> str:
    return " ".join(str(node[kind]) for kind in kinds if kind in node)
