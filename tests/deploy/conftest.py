"""A home whose Postgres has been made once; most starts of the launcher begin with a copy of it."""

import shutil
from pathlib import Path

import pytest

from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    with EmbeddedPostgres(home / "postgres", settings=NOT_DURABLE):
        pass
    return home


@pytest.fixture
def home(made_home: Path, tmp_path: Path) -> Path:
    """A home of this test's own that has been used before."""
    return Path(shutil.copytree(made_home, tmp_path / "home"))
