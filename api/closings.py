"""How a socket ends: the codes that it may be closed with, and what each error means for it."""

import contextlib
from collections.abc import Iterator

from api.problems import problem_of
from api.slots import FULL
from shared.errors import NotFound, StoreUnavailable

BAD_REQUEST = 1008
TOO_BIG = 1009
FAILED = 1011
RESTART = 1012
UNAUTHENTICATED = 4401
WRONG_ORIGIN = 4403
NO_SESSION = 4404
TOO_SLOW = 4408
TOO_MANY = 4429


class Closing(Exception):
    """The socket is to be closed with this code; None where the client has gone already."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def closing_of(error: Exception) -> Closing:
    """What the client is told of an error that ends its socket."""
    problem = problem_of(error)
    if problem.code == FULL:
        return Closing(TOO_MANY, problem.detail)
    return Closing(FAILED, f"{problem.code} {problem.extra.get('error_id', '')}")


@contextlib.contextmanager
def closing_errors() -> Iterator[None]:
    """What relaying a session may raise, as the closing that it means."""
    try:
        yield
    except NotFound as error:
        raise Closing(NO_SESSION, "no such session") from error
    except StoreUnavailable as error:
        raise Closing(RESTART, "the database is away") from error
