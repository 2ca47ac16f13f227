"""The check before a story is offered: what it finds, and that it survives what it finds."""

from pathlib import Path

import pytest

from worker.ink import check
from worker.ink.__main__ import main
from worker.ink.cell import CellLimits
from worker.ink.check import StoryReport, check_story

GOOD = """
# title: The Well
EXTERNAL roll(sides)
-> well
=== well
A well.
+ [Look] Water, {roll(3)} feet down.
  -> well
* [Jump] -> wet
* [Leave] -> dry
=== wet
Splash. # ending: wet
-> END
=== dry
= road
The road is dry. # ending: dry
-> END
=== function roll(sides)
~ return 1
"""


def checked(text: str, *, paths: int = 30, longest: int = 40) -> StoryReport:
    limits = CellLimits(seconds=60, cpu_seconds=60)
    return check_story({"story.ink": text}, paths=paths, longest=longest, limits=limits)


def told(report: StoryReport) -> list[str]:
    return [str(problem) for problem in report.problems]


def test_a_good_story_is_ok_and_its_endings_are_counted() -> None:
    report = checked(GOOD)

    assert report.ok
    assert told(report) == []
    assert report.compiled is not None
    assert set(report.met.endings) == {"wet", "dry"}
    assert sum(report.met.endings.values()) == report.met.played == 30
    assert report.met.tags == ("title: The Well",)
    assert report.met.words_per_path > 0


def test_one_seed_plays_the_same_paths() -> None:
    assert checked(GOOD) == checked(GOOD)


def test_a_story_that_does_not_compile() -> None:
    report = checked("Hello.\n-> nowhere\n")

    assert not report.ok
    assert told(report) == ["story.ink:2: error: Divert target not found: '-> nowhere'"]
    assert report.compiled is None


def test_a_story_that_cannot_be_loaded() -> None:
    text = "\n".join("*" * level + f" c{level}" for level in range(1, 80))

    report = checked(text + "\n- -> END\n")

    assert not report.ok
    assert "nested too deep" in told(report)[0]


def test_a_story_that_kills_its_process_is_told_with_the_way_there() -> None:
    report = checked(
        "* [One] -> a\n=== a\n* [Two]\n~ temp n = 0\n-> k(n)\n=== k(ref n)\n~ n++\n-> END\n"
    )

    assert not report.ok
    assert told(report) == [
        "story.ink: error: after 'One' > 'Two': the story killed its process: "
        "the process under the story died (SIGSEGV)"
    ]


def test_a_silent_loop_is_an_error() -> None:
    report = checked("* [Go] -> k\n=== k\n{true: -> k}\n-> END\n", paths=3)

    assert not report.ok
    assert told(report) == [
        "story.ink: error: after 'Go': BudgetExceededError: a turn took longer than 500 ms"
    ]


def test_an_endless_text_is_an_error() -> None:
    report = checked("-> k\n=== k\nAgain.\n-> k\n", paths=3)

    assert "at the beginning: BudgetExceededError: more than 300 lines" in told(report)[0]


def test_text_that_eats_memory_is_an_error() -> None:
    text = 'VAR s = "abcdefgh"\n-> k\n=== k\n~ s = s + s\n-> k\n'

    assert not checked(text, paths=3).ok


def test_a_division_by_zero_is_an_error_with_the_way_there() -> None:
    report = checked("VAR z = 0\n* [Divide] {1 / z}\n* [Stop]\n- -> END\n", paths=6)

    assert not report.ok
    assert "after 'Divide': EngineCrashedError" in told(report)[0]


def test_a_story_that_goes_in_circles_is_an_error() -> None:
    report = checked("-> k\n=== k\nAgain?\n+ [Yes] -> k\n", paths=3)

    assert not report.ok
    assert told(report) == [
        "story.ink: error: no path came to an end",
        "story.ink: warning: 3 paths did not end; they kept coming to k.0.c-0",
    ]


def test_weak_places_are_warnings() -> None:
    report = checked(
        """EXTERNAL luck()
VAR s = ""
-> hall
=== hall
A hall. {luck():Fine|Not fine} today.
* {true} [{s}] -> gone
* [Door] -> gone
* [Door] -> stop
=== gone
And then nothing
=== stop
-> DONE
=== cellar
= door
Never.
-> END
=== function unused()
~ return 1
"""
    )

    assert report.ok
    assert sorted(told(report)) == sorted(
        [
            "story.ink: warning: stops without -> END after 'And then nothing' "
            f"({report.met.dead_ends['And then nothing']} paths)",
            "story.ink: warning: stops without -> END after '(no text)' "
            f"({report.met.dead_ends['(no text)']} paths)",
            "story.ink:13: warning: no path reached knot or stitch 'cellar'",
            "story.ink:14: warning: no path reached knot or stitch 'cellar.door'",
            "story.ink:17: note: no path reached function 'unused'",
            "story.ink: warning: choice hall.0.c-0 has no text",
            "story.ink: warning: a choice stood beside another of the same text: Door (hall.0.c-1)",
            "story.ink: warning: a choice stood beside another of the same text: Door (hall.0.c-2)",
            "story.ink: warning: EXTERNAL luck has no fallback function",
            "story.ink:10: warning: Apparent loose end exists where the flow runs out. "
            "Do you need a '-> DONE' statement, choice or divert?",
        ]
    )


def test_a_check_without_time_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that the time of the whole process is far away from that of its playing.
    monkeypatch.setattr(check, "_PLAYED_FOR", 0.02)
    report = checked("-> k\n=== k\nAgain?\n+ [Yes] -> k\n* [No] -> END\n", paths=10**6)

    assert report.ok
    assert "paths only" in told(report)[-1]


class TestCommand:
    @pytest.fixture
    def well(self, tmp_path: Path) -> Path:
        (tmp_path / "well").mkdir()
        (tmp_path / "well" / "story.ink").write_text(GOOD)
        return tmp_path / "well"

    def test_a_good_story(self, well: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(well), "--paths", "20"]) == 0

        out = capsys.readouterr().out
        assert out.startswith(f"{well}: ok\n  title: The Well\n  20 paths;")
        assert " wet\n" in out

    def test_one_bad_story_among_good_ones(
        self, well: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad.ink").write_text("Hello.\n-> nowhere\n")

        code = main([str(well / "story.ink"), str(tmp_path / "bad.ink"), "--paths", "5"])

        assert code == 1
        assert "NOT OK\n  bad.ink:2: error: Divert target" in capsys.readouterr().out

    def test_a_missing_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path / "none.ink")]) == 1

        assert "there is no story at" in capsys.readouterr().out
