from collections.abc import Callable

import pytest

from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine

Play = Callable[[str], InkEngine]


@pytest.fixture
def story() -> Play:
    """An engine for a story given as its text."""
    return lambda text: InkEngine(compile_story({"story.ink": text}).json)
