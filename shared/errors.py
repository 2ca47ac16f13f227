"""The errors of the shared parts.

FiresideError
├── SettingsError        a setting is missing or wrong
│   └── PricesError      a table of prices is malformed
├── StoreUnavailable     Postgres did not answer, or refused for now
├── QueueUnavailable     Redis did not answer
├── Refused              a client's request can't be met; has a stable `code`
│   ├── NotFound
│   ├── KeyGone
│   ├── IdempotencyConflict
│   ├── SessionBusy
│   ├── TooManyTasks
│   ├── VersionConflict
│   ├── SoulTooLarge
│   ├── BudgetSpent
│   └── InvalidRequest
├── NewerRelease         a task was begun by a newer release, and is left to it
└── LeaseLost            a worker wrote without the lease: another has the session
"""


class FiresideError(Exception):
    """Anything that Fireside raises on purpose."""


class SettingsError(FiresideError):
    """A setting is missing or wrong; the message names the variable."""


class PricesError(SettingsError):
    """A table of prices can't be read, or is malformed; the message says where."""


class StoreUnavailable(FiresideError):
    """Postgres did not answer, or refused for now."""


class QueueUnavailable(FiresideError):
    """Redis did not answer."""


class LeaseLost(FiresideError):
    """The session's lease is another worker's, or ran out; nothing was written."""


class NewerRelease(FiresideError):
    """A task's rows are of a version that this release does not know; nothing was changed."""


class Refused(FiresideError):
    """A request that can't be met, for a reason that the client can act on."""

    code = "invalid_request"


class InvalidRequest(Refused):
    """A field has a value that can't be used."""


class NotFound(Refused):
    """There is no such thing, or it belongs to someone else."""

    code = "not_found"


class KeyGone(Refused):
    """The API key was revoked, or went with its user, since it was last asked for."""

    code = "unauthorized"


class IdempotencyConflict(Refused):
    """The key was used before, for another request."""

    code = "idempotency_conflict"


class SessionBusy(Refused):
    """A task of the session is running or waiting, and the action asked not to wait."""

    code = "session_busy"


class TooManyTasks(Refused):
    """So many tasks are open that no further one is accepted; nothing was written.

    Args:
        position: how many tasks are before this one: of the user's.
    """

    code = "too_many_tasks"

    def __init__(self, position: int) -> None:
        super().__init__(f"{position} tasks are running or waiting already")
        self.position = position


class VersionConflict(Refused):
    """What was to be changed has been changed meanwhile; nothing was written."""

    code = "version_conflict"


class SoulTooLarge(Refused):
    """A soul would have more characters than a soul may have; nothing was written."""

    code = "payload_too_large"


class BudgetSpent(Refused):
    """A budget that the action would be paid from is spent; nothing was written."""

    code = "budget_spent"
