"""What the check of a story plays of chance: throws that are won and lost, a judge's changes."""

import pytest

from worker.ink.cell import CellLimits
from worker.ink.check import StoryReport, check_story

TOLD = """
VAR check_success = false
VAR check_roll = 0
VAR check_total = 0
VAR wits = 2
* [Climb # dc:12 # stat:wits]
{check_roll < 1 or check_roll > 20 or check_total != check_roll + wits: -> wrong}
{check_success != (check_total >= 12): -> wrong}
{check_success: -> over | -> fall}
=== over
Over. # ending: over
-> END
=== fall
You fall. # ending: fall
-> END
=== wrong
No throw is like this. # ending: wrong
-> END
"""

FATAL = """
VAR check_success = false
* [Climb # dc:2]
{check_success: -> over | -> fall}
=== over
~ temp n = 0
-> k(n)
=== k(ref n)
~ n++
Never seen.
-> END
=== fall
You fall.
-> END
"""

JUDGED = """
# judged: trust, mood, met
# range: trust 1..9 by 2
# range: mood calm, cross
VAR trust = 5
VAR mood = "calm"
VAR met = false
VAR waits = 0
-> gate
=== gate
{trust < 1 or trust > 9 or (mood != "calm" and mood != "cross"): {1 / (waits - waits)}}
~ waits++
+ {waits < 9} [Wait] -> gate
* {trust > 6} [Ask] -> inside
* {trust < 4} [Run] -> away
* {mood == "cross"} [Shout] -> noise
* {met} [Greet] -> greeting
* [Leave] -> away
=== inside
He opens. # ending: inside
-> END
=== noise
He shouts, too. # ending: noise
-> END
=== greeting
"Evening." # ending: greeting
-> END
=== away
You leave. # ending: away
-> END
"""


def checked(text: str, *, paths: int = 60, seed: int = 0) -> StoryReport:
    limits = CellLimits(seconds=60, cpu_seconds=60)
    return check_story({"story.ink": text}, paths=paths, seed=seed, limits=limits)


def told(report: StoryReport) -> list[str]:
    return [str(problem) for problem in report.problems]


def test_both_halves_of_a_throw_are_played_and_its_numbers_agree() -> None:
    report = checked(TOLD)

    assert set(report.met.endings) == {"over", "fall"}
    assert told(report) == ["story.ink:16: warning: no path reached knot or stitch 'wrong'"]


ENDINGS = """
=== over
Over. # ending: over
-> END
=== fall
You fall. # ending: fall
-> END
=== none
Nothing was thrown. # ending: none
-> END
"""


@pytest.mark.parametrize(
    ("declared", "won"),
    [
        ("check_success = false", "check_success"),
        ("check_roll = 0", "check_roll >= 12"),
        ("check_total = 0", "check_total >= 12"),
    ],
)
def test_a_story_declares_what_it_wants_to_know(declared: str, won: str) -> None:
    report = checked(f"VAR {declared}\n* [Climb # dc:12]\n{{{won}: -> over | -> fall}}\n{ENDINGS}")

    assert report.ok
    assert set(report.met.endings) == {"over", "fall"}


@pytest.mark.parametrize(("dc", "ending"), [("1", "over"), ("21", "fall"), ("hard", "none")])
def test_a_throw_falls_as_it_can(dc: str, ending: str) -> None:
    report = checked(
        "VAR check_roll = 0\nVAR check_success = false\n"
        f"* [Climb # dc:{dc}]\n"
        f"{{check_roll == 0: -> none}}\n{{check_success: -> over | -> fall}}\n{ENDINGS}"
    )

    assert set(report.met.endings) == {ending}


def test_what_fails_after_a_won_throw_is_an_error_that_says_so() -> None:
    report = checked(
        "VAR check_success = false\nVAR wits = 2\n* [Climb # dc:12]\n"
        "{check_success: You are over. {100 / (wits - 2)}}\n- -> END\n"
    )

    assert not report.ok
    assert told(report) == [
        "story.ink: error: after 'Climb (won)': EngineCrashedError: the runtime panicked, as it "
        "does when a whole number is divided by 0"
    ]


def test_a_story_that_kills_its_process_after_a_won_throw_is_refused() -> None:
    report = checked(FATAL)

    assert not report.ok
    assert told(report)[0].startswith("story.ink: error: after 'Climb (won)': the story killed")


def test_the_judge_changes_what_it_may_within_its_ranges() -> None:
    report = checked(JUDGED, paths=300)

    assert told(report) == []
    assert set(report.met.endings) == {"inside", "away", "noise", "greeting"}


def test_a_story_without_a_judge_is_changed_by_none() -> None:
    report = checked(f"# judge: off\n{JUDGED}", paths=60)

    assert set(report.met.endings) == {"away"}


def test_what_fails_after_a_change_of_the_judges_is_told_with_the_change() -> None:
    report = checked(
        "# judged: trust\n# range: trust 0..1\nVAR trust = 1\n"
        "* [Wait]\n- (on)\n* [Go on] {5 / trust}\n- -> END\n"
    )

    assert not report.ok
    assert all("'(trust = 0)'" in problem for problem in told(report))


def test_one_seed_plays_the_same_chances() -> None:
    assert checked(JUDGED) == checked(JUDGED)
    assert checked(TOLD).met.endings != checked(TOLD, seed=1).met.endings
