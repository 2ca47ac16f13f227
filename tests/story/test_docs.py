"""The example on the page for authors is a story."""

import re
from pathlib import Path

from tests.story.playing import begun
from worker.ink.check import check_story

PAGE = (Path(__file__).parents[2] / "docs" / "stories.md").read_text()


async def test_the_example_plays() -> None:
    (example,) = re.findall(r"```ink\n(.*?)```", PAGE, re.DOTALL)

    report = check_story({"story.ink": example}, paths=20)
    assert [str(problem) for problem in report.problems] == []
    assert set(report.met.endings) == {"inside"}

    table = await begun(example)
    await table.choose("Greet the guard")
    result = await table.choose("Ask him to open it")
    assert result["state"]["ended"]
