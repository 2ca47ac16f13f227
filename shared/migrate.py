"""`python -m shared.migrate`: bring the database up to this release's schema."""

import sys
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from shared.errors import FiresideError, StoreUnavailable
from shared.settings import get_settings
from shared.store.database import driver_url


def migrate(url: str) -> None:
    """Apply what is missing, in one transaction; safe to run from many processes at once.

    Raises:
        StoreUnavailable: the database can't be reached or refuses the change.
    """
    config = _config()
    engine = create_engine(driver_url(url), connect_args={"connect_timeout": 10})
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise StoreUnavailable(f"migration failed: {reason}") from error
    finally:
        engine.dispose()


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The newest revision that this release knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def main() -> int:
    """Run the command; one clear line on failure."""
    try:
        migrate(get_settings().database_url.get_secret_value())
    except FiresideError as error:
        sys.stderr.write(f"fireside: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
