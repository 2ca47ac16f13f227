"""Making the stories of the folders playable: checked once per version, kept by their hash; and
keeping what this worker has on offer."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from shared.errors import FiresideError, NotFound, SettingsError
from shared.records import CatalogEntry
from shared.settings import Settings
from shared.store import catalog
from shared.store.database import Database
from worker.ink.check import check_story
from worker.ink.engine import InkEngine
from worker.ink.errors import InkError
from worker.ink.library import StoryLibrary, StorySource, card_of

log = structlog.get_logger(__name__)

CHECKED_PATHS = 100
"""Random paths that a new version is played along before it is offered."""


async def publish_stories(db: Database, settings: Settings) -> list[CatalogEntry]:
    """Check and keep what is new; the catalog's entry of each story that may be played.

    A story with an error is left out and logged with its file and line; the others are offered.

    Raises:
        SettingsError: a folder is missing, or two stories have one name.
    """
    try:
        sources = await asyncio.to_thread(StoryLibrary(settings.story_paths).sources)
    except InkError as error:
        raise SettingsError(f"FIRESIDE_STORY_FOLDERS: {error}") from error
    entries = [await _publish(db, source) for source in sources.values()]
    offered = [entry for entry in entries if entry is not None]
    names = [entry.name for entry in offered]
    if settings.default_story is not None and settings.default_story not in names:
        log.warning(
            "FIRESIDE_DEFAULT_STORY is no story that this worker offers",
            story=settings.default_story,
            offered=names,
        )
    return offered


async def announce_for_ever(
    db: Database,
    entries: Sequence[CatalogEntry],
    *,
    seconds: float,
    unheard: Callable[[], None],
) -> None:
    """Say again and again what this worker has, until cancelled: often enough for what nobody has
    said for so many seconds to be gone.

    Args:
        unheard: called where it could not be said: others could not say anything, either.
    """
    every = seconds / 6
    while True:
        await asyncio.sleep(every)
        try:
            await catalog.announce_again(db, entries, every=every / 2)
        except FiresideError as error:
            unheard()
            log.warning("not announced again", error=str(error))


async def _publish(db: Database, source: StorySource) -> CatalogEntry | None:
    compiled = await _compiled(db, source)
    if compiled is None:
        return None
    try:
        engine = await asyncio.to_thread(InkEngine, compiled, story_hash=source.hash)
    except InkError as error:
        # Kept by another release of the engine: the other stories are offered all the same.
        log.exception("story not offered", story=source.name, problems=[str(error)])
        return None
    card = card_of(source.name, engine.tags)
    return CatalogEntry(
        kind="story",
        name=source.name,
        title=card.title,
        description=card.description,
        details={"agent": "story", "hash": source.hash, "author": card.author},
    )


async def _compiled(db: Database, source: StorySource) -> str | None:
    """The story as it is kept, or checked and kept now; None where it has an error."""
    with contextlib.suppress(NotFound):
        return await catalog.compiled_story(db, source.hash)
    report = await asyncio.to_thread(check_story, source.files, source.main, paths=CHECKED_PATHS)
    if not report.ok or report.compiled is None:
        problems = [str(one) for one in report.problems if one.severity == "error"]
        log.error("story not offered", story=source.name, problems=problems)
        return None
    await catalog.keep_story(db, source.hash, source.name, report.compiled)
    return report.compiled
