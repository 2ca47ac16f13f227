"""Which stories a worker offers."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.settings import load_settings
from shared.store import catalog
from shared.store.database import Database
from worker.ink.library import read_story
from worker.publish import publish_stories


async def test_a_story_that_can_not_be_played_keeps_no_other_from_being_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "whole.ink").write_text("# title: Whole\nOnce.\n-> END\n")
    (tmp_path / "broken.ink").write_text("Once. -> nowhere\n")
    (tmp_path / "older.ink").write_text("Once more.\n-> END\n")
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_STORY_FOLDERS", str(tmp_path))
    settings = load_settings()
    db = Database.from_settings(settings)
    older = read_story(tmp_path / "older.ink")
    await catalog.keep_story(db, older.hash, older.name, '{"inkVersion": 1}')

    entries = await publish_stories(db, settings)
    await db.close()

    assert [(entry.name, entry.title) for entry in entries] == [("whole", "Whole")]


@pytest.mark.parametrize(("default", "told"), [("whole", []), ("whale", [["whole"]])])
async def test_a_default_story_that_there_is_none_of_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres_url: str, default: str, told: object
) -> None:
    (tmp_path / "whole.ink").write_text("# title: Whole\nOnce.\n-> END\n")
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("FIRESIDE_STORY_FOLDERS", str(tmp_path))
    monkeypatch.setenv("FIRESIDE_DEFAULT_STORY", default)
    settings = load_settings()
    db = Database.from_settings(settings)

    with capture_logs() as logs:
        await publish_stories(db, settings)
    await db.close()

    said = "FIRESIDE_DEFAULT_STORY is no story that this worker offers"
    assert [one["offered"] for one in logs if one["event"] == said] == told
