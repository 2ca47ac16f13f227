"""The checker sees each kind of defect in a forged history, and none in a correct one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.checker import Defect, DefectKind, check, count
from tests.chaos.forge import Forger
from tests.chaos.history import Answer, Connection, EventRow, History, Letter, Strike
from tests.chaos.measures import UNREAD, paid, percentile, recoveries, wasted

Spoil = Callable[[History], None]


def played() -> Forger:
    """A session with tasks of every fate: taken over, joined, cancelled, failed, with effects."""
    forger = Forger()
    first = forger.accept(turns=2, letters=("l0",), notes=("n0",))
    forger.run(first, takeovers=1)
    second, steer = forger.accept(turns=2, notes=("n1",)), forger.accept(on_busy="steer")
    forger.run(second, joined=(steer,))
    third, interrupt = forger.accept(), forger.accept(on_busy="interrupt")
    forger.run(third, "cancelled", cancel_requested=True)
    forger.run(interrupt)
    forger.run(forger.accept(may_fail=True), "failed")
    forger.run(forger.accept(kind="choose", turns=0))
    waiting, last = forger.accept(letters=("l1",), notes=("n2",)), forger.accept()
    forger.run(waiting)
    forger.run(last)
    return forger


def kinds(history: History) -> set[DefectKind]:
    return {defect.kind for defect in check(history)}


def test_a_correct_history_has_no_defect() -> None:
    forger = played()
    whole, parts = forger.connection(0), [forger.connection(0, 7), forger.connection(7)]
    late = forger.connection(None)
    assert check(forger.history()) == []
    assert check(forger.history(*parts, late)) == []
    assert check(forger.history(whole, *parts)) == []
    assert paid(forger.history()).ratio == 1.0


def test_a_first_attempt_that_died_unheard_has_begun_all_the_same() -> None:
    forger = Forger()
    forger.run(forger.accept(), unheard=True)
    forger.run(forger.accept(on_busy="interrupt"))
    assert check(forger.history()) == []


# -- how histories are spoilt --------------------------------------------------------------------


def drop_event(kind: str, key: str) -> Spoil:
    """The event is neither in the log nor at any client; the numbers close up behind it."""

    def spoil(history: History) -> None:
        events = history.tables.events
        gone = next(e for e in events if (e.type, e.task_id) == (kind, f"task-{key}"))
        events.remove(gone)
        for number, event in enumerate(events):
            if event.seq > gone.seq:
                events[number] = replace(event, seq=event.seq - 1)
        session = history.tables.sessions[0]
        history.tables.sessions[0] = replace(session, next_event=session.next_event - 1)
        for connection in history.connections:
            connection.frames[:] = [
                frame | {"seq": frame["seq"] - (frame["seq"] > gone.seq)}
                for frame in connection.frames
                if frame["seq"] != gone.seq
            ]

    return spoil


def hole(history: History) -> None:
    """The log has no 5, and clients skip it."""
    history.tables.events[:] = [e for e in history.tables.events if e.seq != 5]
    for connection in history.connections:
        connection.frames[:] = [f for f in connection.frames if f["seq"] != 5]


def skip_at_client(history: History) -> None:
    del history.connections[0].frames[4]


def repeat_at_client(history: History) -> None:
    frames = history.connections[0].frames
    frames.insert(5, frames[4])


def swap_at_client(history: History) -> None:
    frames = history.connections[0].frames
    frames[4], frames[5] = frames[5], frames[4]


def rewrite_at_client(history: History) -> None:
    """What was published is not what was committed."""
    frames = history.connections[0].frames
    frames[4] = frames[4] | {"data": {"never": "committed"}}


def lose_the_end_at_clients(history: History) -> None:
    del history.connections[0].frames[-1]


def small_gap_frame(history: History) -> None:
    """A gap frame that announces less than is missing."""
    frames = history.connections[0].frames
    frames[3:6] = [{"type": "gap", "from": 5, "to": 6}]


def lose_task(history: History) -> None:
    """An action was accepted, and the database never heard of it."""
    history.answers.append(Answer("p0-a99", 1.0, 2.0, "accepted", "task-99"))
    history.actions.append(replace(history.actions[0], key="p0-a99", mark="#p0-a99#"))


def double_task(history: History) -> None:
    """The same action is another task in another session."""
    task = history.tables.tasks[0]
    double = replace(task, id="task-double", session_id="elsewhere")
    history.tables.tasks.append(double)


def two_answers(history: History) -> None:
    answer = history.answers[0]
    history.answers.append(replace(answer, task_id="task-other"))


def odd_task(history: History) -> None:
    history.tables.tasks[0] = replace(history.tables.tasks[0], client_action_id="who?")


def refused_task(history: History) -> None:
    history.answers[-1] = replace(history.answers[-1], verdict="refused", task_id=None)


def wrong_answer(history: History) -> None:
    answer = history.answers[-1]
    wrong = Answer(answer.key, answer.sent, answer.at, "wrong", detail="idempotency_conflict")
    history.answers.append(wrong)


def change_task(key: str, **fields: Any) -> Spoil:
    def spoil(history: History) -> None:
        tasks = history.tables.tasks
        at = next(n for n, task in enumerate(tasks) if task.client_action_id == key)
        tasks[at] = replace(tasks[at], **fields)

    return spoil


def second_end(history: History) -> None:
    """The last task ends twice."""
    events = history.tables.events
    again = replace(events[-1], seq=len(events) + 1)
    events.append(again)
    frame = history.connections[0].frames[-1]
    history.connections[0].frames.append(frame | {"seq": again.seq})
    session = history.tables.sessions[0]
    history.tables.sessions[0] = replace(session, next_event=again.seq + 1)


def event_after_end(history: History) -> None:
    events = history.tables.events
    late = EventRow("session-p0", len(events) + 1, "task-p0-a0", "turn_end", {}, 2000.0)
    events.append(late)
    history.connections[0].frames.append(
        {"seq": late.seq, "type": late.type, "task_id": late.task_id, "data": {}}
    )
    session = history.tables.sessions[0]
    history.tables.sessions[0] = replace(session, next_event=late.seq + 1)


def told_twice(history: History) -> None:
    """A second attempt tells a message again that the first had told to its end."""
    events = history.tables.events
    at = next(n for n, e in enumerate(events) if e.type == "message_end")
    shift(history, at)
    events[at + 1] = replace(events[at], seq=events[at].seq + 1)
    resend(history)


def same_attempt_twice(history: History) -> None:
    """Two workers both believe that the attempt is theirs."""
    events = history.tables.events
    at = next(n for n, e in enumerate(events) if e.type == "task_restarted")
    shift(history, at)
    events[at + 1] = replace(events[at], seq=events[at].seq + 1)
    resend(history)


def shift(history: History, at: int) -> None:
    """Make room in the log behind the event at this place."""
    events = history.tables.events
    events[at + 1 :] = [replace(e, seq=e.seq + 1) for e in events[at + 1 :]]
    events.insert(at + 1, events[at])
    session = history.tables.sessions[0]
    history.tables.sessions[0] = replace(session, next_event=session.next_event + 1)


def resend(history: History) -> None:
    """Have clients see the log as it is."""
    frames = [
        {"seq": e.seq, "type": e.type, "task_id": e.task_id, "data": e.data}
        for e in history.tables.events
    ]
    history.connections[:] = [Connection("session-p0", 0, frames)]
    for number, task in enumerate(history.tables.tasks):
        queued = next(
            e.seq for e in history.tables.events if (e.type, e.task_id) == ("task_queued", task.id)
        )
        history.tables.tasks[number] = replace(task, queued_seq=queued)


def swap_ends(history: History) -> None:
    """The last two tasks end in the wrong order."""
    events = history.tables.events
    waiting, last = "task-p0-a7", "task-p0-a8"
    first = [e for e in events if e.task_id == waiting and e.type != "task_queued"]
    second = [e for e in events if e.task_id == last and e.type != "task_queued"]
    kept = [e for e in events if e not in first and e not in second]
    moved = [*kept, *second, *first]
    events[:] = [replace(e, seq=number + 1) for number, e in enumerate(moved)]
    resend(history)


def run_before_interrupt(history: History) -> None:
    """A task that had waited longer runs before the interrupt."""
    history.tables.tasks[3] = replace(history.tables.tasks[3], on_busy="enqueue")
    tasks = history.tables.tasks
    tasks[8] = replace(tasks[8], on_busy="interrupt")


def swap_acceptance(history: History) -> None:
    """The first action was answered before the second was sent, and comes behind it."""
    tasks = history.tables.tasks
    tasks[0], tasks[1] = replace(tasks[0], seq=2), replace(tasks[1], seq=1)


def drop_words(history: History) -> None:
    history.tables.messages[0].message["content"] = "nothing"


def double_words(history: History) -> None:
    message = history.tables.messages[0].message
    history.tables.messages[-1].message.update(role="user", content=message["content"])


def orphan_message(history: History) -> None:
    """A message whose parent is not the one before it: the branch passes by some."""
    messages = history.tables.messages
    messages[-1] = replace(messages[-1], parent=None)


def change_session(**fields: Any) -> Spoil:
    def spoil(history: History) -> None:
        history.tables.sessions[0] = replace(history.tables.sessions[0], **fields)

    return spoil


def lose_letter(history: History) -> None:
    history.letters[:] = [letter for letter in history.letters if letter.mark != "l1"]


def double_letter(history: History) -> None:
    history.letters.append(Letter("l1", "another key"))


def unposted_letter(history: History) -> None:
    """The tool's result is an error that does not call the outcome unknown."""
    for row in history.tables.messages:
        if row.message.get("details") == {"mark": "l1"}:
            row.message.update(is_error=True, content=[{"type": "text", "text": "no"}])


def view(depth: int) -> dict[str, Any]:
    return {"state": {"variables": {"depth": depth}}}


DEFECTS: list[tuple[DefectKind, Spoil]] = [
    ("lost", lose_task),
    ("lost", wrong_answer),
    ("lost", rewrite_at_client),
    ("lost", lose_the_end_at_clients),
    ("lost", drop_event("task_completed", "p0-a8")),
    ("lost", change_task("p0-a8", status="dead")),
    ("lost", change_task("p0-a8", status="failed")),
    ("lost", change_task("p0-a8", status="cancelled")),
    ("lost", drop_words),
    ("lost", lose_letter),
    ("lost", unposted_letter),
    ("lost", change_session(state={"notes": ["n0", "n1"]})),
    ("lost", change_session(view=view(0))),
    ("lost", orphan_message),
    ("doubled", double_task),
    ("doubled", two_answers),
    ("doubled", odd_task),
    ("doubled", refused_task),
    ("doubled", repeat_at_client),
    ("doubled", told_twice),
    ("doubled", same_attempt_twice),
    ("doubled", double_words),
    ("doubled", double_letter),
    ("doubled", change_session(state={"notes": ["n0", "n0", "n1", "n2"]})),
    ("doubled", change_session(view=view(2))),
    ("disordered", swap_at_client),
    ("disordered", event_after_end),
    ("disordered", swap_ends),
    ("disordered", swap_acceptance),
    ("disordered", run_before_interrupt),
    ("disordered", change_session(state={"notes": ["n2", "n1", "n0"]})),
    ("gaps", hole),
    ("gaps", skip_at_client),
    ("gaps", small_gap_frame),
    ("gaps", change_session(next_event=3)),
    ("gaps", change_session(next_event=999)),
    ("terminal_missing", drop_event("task_completed", "p0-a8")),
    ("terminal_missing", second_end),
    ("terminal_missing", change_task("p0-a8", status="running")),
]


@pytest.mark.parametrize(("kind", "spoil"), DEFECTS)
def test_a_defect_is_seen(kind: DefectKind, spoil: Spoil) -> None:
    history = played().history()
    spoil(history)
    assert kind in kinds(history)


def test_a_joined_action_counts_only_if_its_run_was_completed() -> None:
    forger = Forger()
    first, steer = forger.accept(may_fail=True), forger.accept(on_busy="steer")
    forger.run(first, joined=(steer,))
    history = forger.history()
    assert check(history) == []

    for row in list(history.tables.messages):
        if "#p0-a1#" in str(row.message):
            row.message["content"] = ""
    assert check(history) == [Defect("lost", "the words of p0-a1 are not in the transcript")]


def test_an_announced_gap_is_none() -> None:
    history = played().history()
    history.connections[0].frames[0:3] = [{"type": "gap", "from": 1, "to": 3}]
    assert check(history) == []


def test_an_external_call_that_is_called_unknown_may_have_happened_or_not() -> None:
    for posted in (True, False):
        history = played().history()
        text = [{"type": "text", "text": "The outcome of this call is unknown."}]
        for row in history.tables.messages:
            if row.message.get("details") == {"mark": "l1"}:
                row.message.update(is_error=True, content=text)
                del row.message["details"]
        if not posted:
            lose_letter(history)
        assert check(history) == []


def test_a_task_that_nobody_answered_for_may_have_been_accepted() -> None:
    forger = Forger()
    forger.run(forger.accept())
    history = forger.history()
    history.answers.clear()
    assert check(history) == []
    doubt = Answer("p0-a0", 1.0, 2.0, "refused", None, doubtful=True)
    history.answers.append(doubt)
    assert check(history) == []


def test_defects_are_counted_by_kind() -> None:
    defects = [Defect("lost", "a"), Defect("lost", "b"), Defect("gaps", "c")]
    assert count(defects) == {
        "lost": 2,
        "doubled": 0,
        "disordered": 0,
        "gaps": 1,
        "terminal_missing": 0,
    }


# -- measures ------------------------------------------------------------------------------------


def test_a_call_that_is_answered_twice_is_paid_twice() -> None:
    history = played().history()
    again = next(call for call in history.calls if call.end == "completed")
    spoilt = [replace(again, end="failed"), replace(again, end="aborted")]
    history.calls += [again, *spoilt, replace(again, rule="default")]
    counted = paid(history)
    assert (counted.completed, counted.needed) == (counted.needed + 1, 8)


@pytest.mark.parametrize(
    ("target", "at", "until", "kind"),
    [
        ("worker", -0.1, 4.0, UNREAD),
        ("worker", 0.1, 4.0, "freeze"),
        ("worker", 0.2, None, "freeze"),
        ("worker", 2.0, None, "other"),
        ("worker", -2.0, -1.0, "other"),
        ("other", 0.0, 4.0, "other"),
    ],
)
def test_what_lost_an_answer_struck_while_it_should_have_been_written(
    target: str, at: float, until: float | None, kind: str
) -> None:
    history = played().history()
    lost = next(call for call in history.calls if call.end == "completed")
    ended = (lost.ended or 0.0) - 10.0
    history.calls.append(replace(lost, worker="worker", ended=ended))
    until = until and ended + until
    history.strikes.append(Strike("freeze", target, ended + at, until))
    assert wasted(history) == {kind: 1}
    assert paid(history).unread == (kind == UNREAD)
    assert (paid(history).ratio == 1.0) == (kind == UNREAD)


def test_who_is_killed_as_it_wakes_has_read_nothing_of_what_came_while_it_stood_frozen() -> None:
    history = played().history()
    lost = next(call for call in history.calls if call.end == "completed")
    history.calls.append(replace(lost, worker="worker", ended=50.0))
    history.strikes.append(Strike("blackout", "worker", 49.0, 51.0))
    assert wasted(history) == {"blackout": 1}
    history.strikes.append(Strike("kill", "worker", 51.01, 54.0))
    assert wasted(history) == {UNREAD: 1}


def test_recovery_is_from_the_strike_to_the_next_attempt() -> None:
    forger = Forger()
    task = forger.accept()
    forger.run(task, takeovers=1)
    history = forger.history()
    lost = next(call for call in history.calls if call.end == "aborted")
    again = next(event for event in history.tables.events if event.type == "task_restarted")
    at = (lost.began + again.at) / 2
    history.strikes = [
        Strike("kill", "worker-0", at, at + 9),
        Strike("kill", "worker-1", at, at + 9),
        Strike("term", "worker-0", at, at + 9),
    ]
    (found,) = recoveries(history)
    assert (found.target, found.seconds) == ("worker-0", round(again.at - at, 3))
    assert found.clear

    history.strikes.append(Strike("freeze", "worker-2", at - 1, None))
    assert [one.clear for one in recoveries(history)] == [False]


def test_the_tasks_of_a_worker_that_had_lost_them_before_are_not_counted() -> None:
    forger = Forger()
    forger.run(forger.accept(), takeovers=1)
    history = forger.history()
    again = next(event for event in history.tables.events if event.type == "task_restarted")
    history.strikes = [Strike("kill", "worker-0", again.at + 0.01, again.at + 1)]
    assert recoveries(history) == []


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 95)) == (51.0, 96.0)
    assert percentile([], 95) == 0.0


# -- any correct history -------------------------------------------------------------------------


@st.composite
def correct_histories(draw: st.DrawFn) -> History:
    """Actions of every mode, runs of every fate, and clients that come and go."""
    forger = Forger()
    for _ in range(draw(st.integers(0, 8))):
        fate = draw(st.sampled_from(["plain", "fails", "interrupted", "joined", "choose", "queue"]))
        effects: dict[str, Any] = {
            "turns": draw(st.integers(1, 3)),
            "letters": tuple(f"l{len(forger.actions)}.{n}" for n in range(draw(st.integers(0, 2)))),
            "notes": tuple(f"n{len(forger.actions)}.{n}" for n in range(draw(st.integers(0, 2)))),
        }
        takeovers = draw(st.integers(0, 2))
        if fate == "plain":
            forger.run(forger.accept(**effects), takeovers=takeovers)
        elif fate == "fails":
            forger.run(forger.accept(may_fail=True), "failed", takeovers=takeovers)
        elif fate == "choose":
            forger.run(forger.accept(kind="choose", turns=0), takeovers=takeovers)
        elif fate == "interrupted":
            running, waiting = forger.accept(**effects), forger.accept()
            interrupt = forger.accept(on_busy="interrupt")
            forger.run(running, "cancelled", takeovers=takeovers, cancel_requested=True)
            forger.run(interrupt)
            forger.run(waiting)
        elif fate == "joined":
            running = forger.accept(**effects)
            mode = draw(st.sampled_from(["steer", "follow_up", "collect"]))
            joined = [forger.accept(on_busy=mode) for _ in range(draw(st.integers(1, 3)))]
            forger.run(running, takeovers=takeovers, joined=tuple(joined))
        else:
            queue = [forger.accept() for _ in range(draw(st.integers(2, 3)))]
            gone = draw(st.booleans())
            if gone:
                forger.actions[-1] = replace(forger.actions[-1], is_cancelled=True)
                forger.cancel_queued(queue.pop())
            for task in queue:
                forger.run(task)
    cuts = sorted(draw(st.lists(st.integers(0, len(forger.events)), max_size=4)))
    ends = [*cuts, len(forger.events)]
    connections = [
        forger.connection(begin, end) for begin, end in zip([0, *cuts], ends, strict=True)
    ]
    if draw(st.booleans()):
        connections.append(forger.connection(None))
    return forger.history(*connections)


@settings(max_examples=150, deadline=None)
@given(correct_histories())
def test_any_correct_history_passes(history: History) -> None:
    assert check(history) == []
    assert paid(history).ratio == 1.0
