"""Where the launcher makes vectors of memories, and why it does not."""

import subprocess
import sys

import pytest

from deploy.local.embeddings import words_alone
from deploy.local.server import ROOT


@pytest.mark.parametrize("named", ["hashing", "openai/text-embedding-3-small"])
def test_a_model_that_needs_no_package_is_taken(named: str) -> None:
    assert words_alone({"FIRESIDE_EMBEDDINGS": named}) == ""


def test_none_is_wanted() -> None:
    assert words_alone({"FIRESIDE_EMBEDDINGS": "none"}) == "FIRESIDE_EMBEDDINGS is none"


@pytest.mark.parametrize("environment", [{}, {"FIRESIDE_EMBEDDINGS": "minilm"}])
def test_without_its_packages_the_one_of_this_machine_is_left_out(
    environment: dict[str, str],
) -> None:
    """In a Python that has none of the installed packages."""
    script = (
        "from deploy.local.embeddings import words_alone\n"
        f"print(words_alone({environment!r}), end='')"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert found.stdout == "numpy is not installed (the extra `embeddings`)"
