"""What one-shot commands share: exit codes, errors as one clear line, and the open database."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from shared.errors import FiresideError
from shared.settings import Settings, get_settings
from shared.store.database import Database


def exit_code_of(work: Callable[[], int | None]) -> int:
    """Do a command's work, which may give the code; 1 and one clear line for an error of ours, or
    where the terminal has no letters for what there is to say."""
    try:
        return work() or 0
    except (FiresideError, UnicodeEncodeError) as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130  # as shells say it


def run_on_database(work: Callable[[Settings, Database], Awaitable[int | None]]) -> int:
    """The same for work on the database that the settings name."""

    async def run() -> int | None:
        settings = get_settings()
        async with Database.opened(settings) as db:
            return await work(settings, db)

    return exit_code_of(lambda: asyncio.run(run()))


def say(line: str) -> None:
    """Write a line of what was asked for."""
    sys.stdout.write(f"{line}\n")


def complain(message: object) -> int:
    """Write one line about what went wrong; the exit code of a failure."""
    sys.stderr.write(f"fireside: {message}\n")
    return 1
