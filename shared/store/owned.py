"""Which tables hold what belongs to a user: all of them, for exports and erasures miss none.

A test compares this list with the schema: a table with a column that names a user, a session or
a character must stand here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Owned:
    """A table with rows of users.

    `by` is the column that says whose a row is; `keys` order the rows of one owner, each with its
    type. `hidden` columns are not exported: they are secrets, or say nothing.
    """

    name: str
    by: Literal["user_id", "session_id", "character_id"]
    keys: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...] = ()

    @property
    def whose(self) -> str:
        """SQL that says of a row `t` whether it is the user's, and of the owner `:owner`.

        A user owns what bears his name; of sessions and characters he owns one at a time is asked
        for, so that no statement goes through rows of others.
        """
        match self.by:
            case "user_id":
                return "t.user_id = :user"
            case "session_id":
                parent = "sessions"
            case "character_id":
                parent = "characters"
        return (
            f"t.{self.by} = :owner"
            f" and exists (select from {parent} p where p.id = :owner and p.user_id = :user)"
        )


OF_SESSIONS = (
    Owned("tasks", "session_id", (("seq", "bigint"),), ("body_hash", "epoch")),
    Owned("early_cancels", "session_id", (("client_action_id", "text"),)),
    Owned("messages", "session_id", (("no", "bigint"),)),
    Owned("events", "session_id", (("seq", "bigint"),), ("epoch", "version")),
    Owned("steps", "session_id", (("task_seq", "bigint"), ("no", "integer")), ("epoch", "version")),
)
"""What goes with a session."""

OF_CHARACTERS = (Owned("souls", "character_id", (("version", "integer"),)),)
"""What goes with a character."""

SESSIONS = Owned(
    "sessions", "user_id", (("id", "uuid"),), ("lease_token", "lease_until", "epoch", "hint_at")
)
CHARACTERS = Owned("characters", "user_id", (("id", "uuid"),))
API_KEYS = Owned("api_keys", "user_id", (("id", "uuid"),), ("sha256",))

OF_USERS = (
    Owned("consolidation_lines", "user_id", (("id", "uuid"),), ("batch_id", "tokens")),
    Owned("memories", "user_id", (("id", "uuid"),), ("vector", "words", "keys")),
    Owned("crowds", "user_id", (("character_id", "uuid"),)),
)
"""What else bears the user's name and goes with nothing, in the order in which it is deleted."""

BOOKS = (
    Owned(
        "usage",
        "user_id",
        tuple((name, "uuid") for name in ("session_id", "task_id"))
        + tuple((name, "integer") for name in ("attempt", "no")),
    ),
    Owned("spending", "user_id", (("key_id", "text"), ("slot", "smallint"))),
    Owned("budgets", "user_id", (("key_id", "text"),)),
)
"""What `usage.forget` sees to: the ledger stays under a random name, for its sums are needed."""

ALL = (*OF_SESSIONS, *OF_USERS, SESSIONS, *OF_CHARACTERS, CHARACTERS, API_KEYS, *BOOKS)
"""All of them, those first that refer to others."""
