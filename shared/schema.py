"""Which schema this release needs, by the names of its migrations.

Alembic would tell it as well, for 10 MB in each process: it is left to the one that migrates.
"""

from functools import lru_cache
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The newest revision that this release knows: a migration's file begins with its own."""
    files = (MIGRATIONS / "versions").glob("[0-9]*.py")
    return max(file.name.partition("_")[0] for file in files)


def is_older(revision: str | None) -> bool:
    """Whether a schema is missing, or of an earlier release: this one can't serve from it."""
    return revision is None or revision < head_revision()


def is_newer(revision: str | None) -> bool:
    """Whether a schema is of a later release: it serves, for migrations only add, and a release
    before the last goes on."""
    return revision is not None and revision > head_revision()


def warn_of_newer_schema(revision: str | None) -> None:
    """Tell the log where the schema is of a later release."""
    if is_newer(revision):
        log.warning(
            "the schema is newer than this release",
            schema=revision,
            release=head_revision(),
        )
