"""The project's own files: what a fresh clone relies on."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lock_file_names_only_the_public_index() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text()))

    assert hosts == {"pypi.org", "files.pythonhosted.org"}
