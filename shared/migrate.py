"""`python -m shared.migrate`: bring the database up to this release's schema."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from shared.command import exit_code_of
from shared.errors import StoreUnavailable
from shared.schema import MIGRATIONS, is_newer, warn_of_newer_schema
from shared.settings import get_settings
from shared.store.database import driver_url
from shared.store.locks import MIGRATION_LOCK

_PAUSE_SECONDS = 0.2


def migrate(url: str, revision: str = "head") -> None:
    """Apply what is missing up to a revision; safe to run from many processes at once, and again.

    A schema of a later release stays as it is, for this one goes over it when it is gone back to.

    Raises:
        StoreUnavailable: the database can't be reached or refuses the change.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(driver_url(url), connect_args={"connect_timeout": 10})
    try:
        with _alone(engine):
            found = _revision(engine)
            if revision == "head" and is_newer(found):
                warn_of_newer_schema(found)
                return
            with engine.connect() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
    except CommandError as error:
        raise StoreUnavailable(f"migration failed: {error}") from error
    except SQLAlchemyError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise StoreUnavailable(f"migration failed: {reason}") from error
    finally:
        engine.dispose()


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Keep other migrating processes out.

    A transaction's lock, for it must also hold behind a pooler, and on a connection of its own,
    for an index is built outside of transactions. Nobody waits for it within a statement: the
    build of an index waits for all statements, and so for those that wait for its end.
    """
    while True:
        with engine.begin() as guard:
            guard.execute(text("set local idle_in_transaction_session_timeout = 0"))
            lock = text(f"select pg_try_advisory_xact_lock({MIGRATION_LOCK})")
            if guard.execute(lock).scalar_one():
                # What ran last keeps its snapshot for as long as its result is open; this has none.
                guard.execute(text("set local lock_timeout = 0"))
                yield
                return
        time.sleep(_PAUSE_SECONDS)


def _revision(engine: Engine) -> str:
    """The schema's revision; empty where nothing was migrated yet."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() or ""


def main() -> int:
    """Run the command; one clear line on failure."""
    argparse.ArgumentParser(prog="python -m shared.migrate", description=__doc__).parse_args()
    return exit_code_of(lambda: migrate(get_settings().database_url.get_secret_value()))


if __name__ == "__main__":
    sys.exit(main())
