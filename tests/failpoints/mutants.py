"""What the suite notices: each safeguard is taken out of a copy of the tree, and a test must fail.

    python -m tests.failpoints.mutants [--all] [-o docs/mutants.md] [name ...]

runs the tests named beside each mutant, one after the other, until one fails; with `--all` every
one of them has to. A mutant that survives ends the program with exit code 1.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.server import ROOT
from tests.failpoints.mutant import Change, Mutant
from tests.failpoints.mutants_of_ledger import OF_LEDGER
from tests.failpoints.mutants_of_memories import OF_MEMORIES
from tests.failpoints.mutants_of_warm_sessions import OF_WARM_SESSIONS

TREE = ("agent_core", "api", "deploy", "examples", "shared", "stories", "tests", "worker")
"""What the tests need of the tree."""

TEST_SECONDS = 300
"""How long one selection of tests may take."""

CLAIMS = "shared/store/claims.py"
CONNECTION = "shared/store/connection.py"
LEASES = "shared/store/leases.py"
SWEEPS = "shared/store/sweeps.py"
FIRST_SCHEMA = "shared/migrations/versions/0001_first.py"
TASK_LOG = "worker/task_log.py"
ATTEMPT_EVENTS = "worker/attempt_events.py"
STORE = "tests/shared/test_leases.py"
MACHINE = "tests/shared/test_state_machine.py"
FAILPOINTS = "tests/failpoints/test_failpoints.py"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which tests noticed a mutant, and after how many seconds of looking.

    `survived` says in which selections none did.
    """

    mutant: Mutant
    caught_by: tuple[str, ...]
    survived: tuple[str, ...]
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether it was noticed wherever it had to be."""
        return bool(self.caught_by) and not self.survived


def _leases(old: str, new: str) -> tuple[Change, ...]:
    return (Change(LEASES, old, new),)


_FENCE = "where id = :session and epoch = :epoch and lease_token = :token"
_MINE = "on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token"
_ANYBODY = "where id = :session and :epoch >= 0 and cast(:token as uuid) is not null"
_ONCE = "\n            and writes = coalesce(cast(:writes as integer), writes)"
_WRITE_RETURNS = f"{_ONCE}\n        returning next_event - :event_count as first_seq, clock"
_END_RETURNS = f"{_ONCE}\n        returning next_event - :event_count as first_seq,\n"
_RENEWED = "lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)"
_TERMINAL_INDEX = """CREATE UNIQUE INDEX events_one_terminal ON events (task_id)
    WHERE type IN ('task_completed', 'task_failed', 'task_cancelled', 'task_dead');
"""
_UNLOCKED = (Change(CLAIMS, 'where id = :session for no key update")', 'where id = :session")'),)
_SEQUENCE = "CREATE SEQUENCE event_numbers;\n"
_TELL_FIRST = """row = await self._db.row(
            __import__("sqlalchemy").text("select next_event, now() from sessions where id = :s"),
            {"s": claim.fence.session_id},
        )
        if row is not None:
            told = [Event(row[0] + n, e.type, claim.task_id, row[1], e.data)
                    for n, e in enumerate(events)]
            await self.tell(claim, told)
        """

MUTANTS: list[Mutant] = [
    Mutant(
        "writes are not fenced",
        _leases(_FENCE + _WRITE_RETURNS, _ANYBODY + _WRITE_RETURNS),
        (f"{STORE} lost_its_lease", f"{STORE} successor_ended"),
    ),
    Mutant(
        # A zombie has mostly written more often than its successor, whose number keeps it out.
        "writes are neither fenced nor numbered",
        _leases(_FENCE + _WRITE_RETURNS, _ANYBODY + _WRITE_RETURNS.removeprefix(_ONCE)),
        (f"{STORE} lost_its_lease", f"{FAILPOINTS} freeze-before-the-answer"),
    ),
    Mutant(
        "ends are not fenced",
        _leases(_FENCE + _END_RETURNS, _ANYBODY + _END_RETURNS),
        (f"{STORE} lost_its_lease", f"{STORE} successor_ended"),
    ),
    Mutant(
        "ends are neither fenced nor numbered",
        _leases(_FENCE + _END_RETURNS, _ANYBODY + _END_RETURNS.removeprefix(_ONCE)),
        (f"{STORE} lost_its_lease", f"{FAILPOINTS} freeze-before-the-end-is-written"),
    ),
    Mutant(
        "writes are fenced by the epoch alone",
        _leases(
            _FENCE + _WRITE_RETURNS,
            _FENCE.replace("lease_token = :token", "cast(:token as uuid) is not null")
            + _WRITE_RETURNS,
        ),
        (f"{STORE} neither_epoch_nor_token", MACHINE),
    ),
    Mutant(
        "a heartbeat renews anybody's lease",
        _leases(f"{_MINE}\n        for no key update", "on s.id = h.id\n        for no key update"),
        (MACHINE,),
    ),
    Mutant(
        "a pulse takes anybody's lease for its own",
        _leases(f'{_MINE}\n    """', 'on s.id = h.id\n    """'),
        (f"{STORE} heartbeat", MACHINE),
    ),
    Mutant(
        "a heartbeat renews nothing",
        _leases(f"set {_RENEWED}\n    from mine", "set lease_until = lease_until\n    from mine"),
        (f"{STORE} heartbeat", MACHINE),
    ),
    Mutant(
        "a release gives back the successor's lease",
        _leases(f"{_FENCE}\n        returning id", f"{_ANYBODY}\n        returning id"),
        (f"{STORE} lost_its_lease", f"{FAILPOINTS} freeze-before-the-lease-is-given-back"),
    ),
    Mutant(
        "a lease is taken while it holds",
        (
            Change(
                SWEEPS,
                'FREE = """open_tasks > 0\n'
                "        and (lease_until is null or lease_until < clock_timestamp())",
                'FREE = """open_tasks > 0',
            ),
        ),
        (f"{STORE} one_of_twenty", MACHINE),
    ),
    Mutant(
        "a claim keeps the epoch",
        (Change(CLAIMS, "epoch = epoch + 1,", "epoch = epoch,"),),
        (f"{STORE} what_a_takeover_finds", MACHINE),
    ),
    Mutant(
        "the state is read before the lease is held",
        (
            *_UNLOCKED,
            Change(
                CLAIMS,
                "s.metadata, s.state, s.view,",
                "s.metadata,\n"
                "        (select x.state from sessions x where x.id = :session) as state, s.view,",
            ),
        ),
        (f"{STORE} state_is_read_under_the_lease",),
    ),
    Mutant(
        "a claim looks before it has the row",
        (
            Change(
                CLAIMS,
                'where id = :session for no key update")',
                'where id = :session")',
            ),
        ),
        (f"{STORE} accepted_while_a_claim_waits",),
    ),
    Mutant(
        "what is sent together is committed one by one",
        (
            Change(
                "shared/store/database.py",
                "return await self._exchange(texts, binary=binary)",
                "return [(await self._exchange([one], binary=binary))[0] for one in texts]",
            ),
        ),
        ("tests/shared/test_database.py sent_together",),
    ),
    Mutant(
        "a task that another has begun is claimed like a new one",
        (Change(CLAIMS, "s.id = :session and not free.more", "s.id = :session"),),
        (f"{STORE} what_a_takeover_finds", MACHINE),
    ),
    Mutant(
        "a task that runs is overtaken",
        (Change(CLAIMS, "order by (status = 'running') desc, ", "order by "),),
        (f"{STORE} not_overtaken", MACHINE),
    ),
    Mutant(
        "a claimed session waits for its next hint as long as before",
        (
            Change(
                CLAIMS,
                """
        hints = 0,
        hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))""",
                "\n        hints = 0",
            ),
        ),
        (f"{STORE} a_claim_ends_the_waiting",),
    ),
    Mutant(
        "an end leaves the task counted as open",
        _leases("open_tasks = open_tasks - 1 - ", "open_tasks = open_tasks - "),
        (f"{STORE} an_end_changes_all", MACHINE),
    ),
    Mutant(
        "events are numbered by a sequence",
        (
            Change(LEASES, "fence.first_seq + e.ord - 1", "nextval('event_numbers')"),
            Change(FIRST_SCHEMA, "CREATE TABLE events (", _SEQUENCE + "CREATE TABLE events ("),
        ),
        (f"{STORE} at_once_all_is_in_order", MACHINE),
    ),
    Mutant(
        "a task may have two terminal events",
        (Change(FIRST_SCHEMA, _TERMINAL_INDEX, ""),),
        (f"{STORE} second_terminal_event",),
    ),
    Mutant(
        "two tasks of a session may run",
        (
            Change(
                FIRST_SCHEMA,
                "CREATE UNIQUE INDEX tasks_one_running",
                "CREATE INDEX tasks_one_running",
            ),
        ),
        (f"{STORE} second_running_task",),
    ),
    Mutant(
        "nobody sweeps",
        (
            Change(
                "shared/sweep.py",
                "while found := await sweeps.sweep(db, limit=BATCH, grace=grace):",
                "while found := []:",
            ),
        ),
        ("tests/shared/test_sweep.py", f"{FAILPOINTS} kill-after-the-session-is-claimed"),
    ),
    Mutant(
        "a frozen transaction is not ended",
        (Change(CONNECTION, 'session_timeout": "3s"', 'session_timeout": "300s"'),),
        (
            f"{STORE} frozen_with_a_session_locked",
            f"{FAILPOINTS} freeze-after-the-lease-is-taken-over",
        ),
    ),
    Mutant(
        "what is journalled is not looked up",
        (
            Change(
                TASK_LOG,
                "self._memos = {step.no: step for step in claim.steps}",
                "self._memos: dict[int, Step] = {}",
            ),
        ),
        ("tests/worker/test_task_log.py", f"{FAILPOINTS} kill-after-the-tool-is-journalled"),
    ),
    Mutant(
        "a tool runs before its beginning is journalled",
        (
            Change(
                TASK_LOG,
                'if step.effect == "external" or later_call or self._claim.attempts > 1:',
                "if later_call or self._claim.attempts > 1:",
            ),
        ),
        ("tests/worker/test_task_log.py", f"{FAILPOINTS} kill-before-the-tool-begins"),
    ),
    Mutant(
        "a tool's end is journalled later",
        (
            Change(
                TASK_LOG,
                """        if step.effect == "external":
            await self.flush()
        else:
            self._flush_in(GROUP_SECONDS)""",
                "        self._flush_in(GROUP_SECONDS)",
            ),
        ),
        ("tests/worker/test_task_log.py",),
    ),
    Mutant(
        "a model is called before the last answer is journalled",
        (
            Change(
                TASK_LOG,
                'later_call = step.kind == "model" and step.no > 0',
                "later_call = False",
            ),
        ),
        ("tests/worker/test_task_log.py",),
    ),
    Mutant(
        "a tool of which nobody knows whether it ran is run again",
        (
            Change(
                "worker/takeover.py",
                'if memo.status == "unknown" or step.effect == "external":',
                'if memo.status == "unknown":',
            ),
        ),
        ("tests/worker/test_task_log.py", f"{FAILPOINTS} after-the-tool-runs"),
    ),
    Mutant(
        "a takeover tells everything again",
        (
            Change(
                ATTEMPT_EVENTS,
                "self._settled, self.messages = told.settled, told.messages",
                "self._settled, self.messages = type(told.settled)(), told.messages",
            ),
        ),
        ("tests/worker/test_task_log.py", f"{FAILPOINTS} kill-after-the-tool-is-journalled"),
    ),
    Mutant(
        "an attempt writes on after a write that failed",
        (
            Change(
                TASK_LOG,
                "# this one had been made.\n                raise self._lose(error)",
                "# this one had been made.\n                raise AttemptLostError(str(error))",
            ),
        ),
        ("tests/worker/test_task_log.py",),
    ),
    Mutant(
        "a run goes on although its lease was not renewed",
        (
            Change(
                "worker/holding.py",
                "now - max(held.renewed_at, sure) > self._lease_seconds",
                "now - max(held.renewed_at, sure) > 1e9",
            ),
        ),
        ("tests/worker/test_host.py longer_than_patience",),
    ),
    Mutant(
        "leases are renewed on the loop of the sessions",
        (
            Change(
                "worker/renewal.py",
                'await on_own_loop(self._renew_for_ever, name="leases")',
                "await self._renew_for_ever()",
            ),
        ),
        ("tests/worker/test_host.py a_loop_that",),
    ),
    Mutant(
        "a loop that stands still keeps its leases",
        (
            Change(
                "worker/renewal.py",
                "still <= LEASES_STOOD_STILL * self._settings.lease_seconds",
                "still <= 1e9",
            ),
        ),
        ("tests/worker/test_host.py a_loop_that",),
    ),
    Mutant(
        "a claim that stood in line is doubted at once",
        (
            Change(
                "worker/holding.py",
                "held.renewed_at = max(held.renewed_at, asked)",
                "held.renewed_at = min(held.renewed_at, asked)",
            ),
        ),
        ("tests/worker/test_holding.py",),
    ),
    Mutant(
        "events are told before they are committed",
        (
            Change(
                "worker/postgres_tasks.py",
                "progress = self._progress.setdefault(",
                f"{_TELL_FIRST}progress = self._progress.setdefault(",
            ),
        ),
        (f"{FAILPOINTS} kill-before-the-start-is-written",),
    ),
    Mutant(
        "a hint is sent before its action is committed",
        (
            Change(
                "api/actions.py",
                "    accepted = await actions.accept(",
                "    parts.announcer.tell(session_id, hint=True)\n"
                "    accepted = await actions.accept(",
            ),
        ),
        (f"{FAILPOINTS} gateway",),
    ),
    Mutant(
        "an erased user's worker writes on",
        (
            Change(
                "shared/store/erasure.py",
                "set epoch = epoch + 1, lease_token = null, lease_until = null, ready_at = null,",
                "set ready_at = null,",
            ),
        ),
        ("tests/shared/test_erasure.py fenced_off",),
    ),
    *OF_LEDGER,
    *OF_MEMORIES,
    *OF_WARM_SESSIONS,
]


def main() -> None:
    """Run the mutants that are named, or all; writes the table where `-o` says."""
    parser = argparse.ArgumentParser(prog="python -m tests.failpoints.mutants")
    parser.add_argument("names", nargs="*", help="words of the names of those to run")
    parser.add_argument("--all", action="store_true", help="run every selection of tests")
    parser.add_argument("-o", "--output", type=Path, help="file for the table")
    options = parser.parse_args()
    words = [word.lower() for word in options.names]
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="fireside-mutants-") as folder:
        tree = copied_tree(Path(folder))
        verdicts = []
        for mutant in chosen:
            verdict = judge(mutant, tree, everywhere=options.all)
            noticed = ", ".join(verdict.caught_by) or "nobody"
            survived = f"; NOT by {', '.join(verdict.survived)}" if not verdict.caught else ""
            print(f"{verdict.seconds:6.1f} s  {mutant.name}: {noticed}{survived}", flush=True)
            verdicts.append(verdict)
    if options.output is not None:
        options.output.write_text(table(verdicts), encoding="utf-8")
    if not all(verdict.caught for verdict in verdicts):
        sys.exit(1)


def copied_tree(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def judge(mutant: Mutant, tree: Path, *, everywhere: bool) -> Verdict:
    """Let the tests look for what is missing in a tree, which is as before afterwards.

    Args:
        everywhere: go on with the other tests after one has failed.
    """
    whole = {change.file: (tree / change.file).read_text("utf-8") for change in mutant.changes}
    began = time.monotonic()
    caught_by: list[str] = []
    survived: list[str] = []
    try:
        for change in mutant.changes:
            (tree / change.file).write_text(change.changed(tree), encoding="utf-8")
        for tests in mutant.tests:
            if (failed := failing_test(tests, tree)) is None:
                survived.append(tests)
                continue
            caught_by.append(failed)
            if not everywhere:
                survived.clear()
                break
    finally:
        for file, text in whole.items():
            (tree / file).write_text(text, encoding="utf-8")
    return Verdict(mutant, tuple(caught_by), tuple(survived), time.monotonic() - began)


def failing_test(tests: str, tree: Path) -> str | None:
    """The first test that fails, or None where all pass; RuntimeError where none ran."""
    file, _, words = tests.partition(" ")
    command = [sys.executable, "-m", "pytest", "-xq", "--hypothesis-profile=unshrunk", file]
    ran = subprocess.run(
        [*command, *(["-k", words] if words else [])],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    if ran.returncode == 0:
        return None
    if failed := re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE):
        return failed[1]
    raise RuntimeError(f"{tests} did not run:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in Markdown."""
    lines = ["| what is taken out | noticed by |", "|---|---|"]
    for one in verdicts:
        tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in one.caught_by)
        lines.append(f"| {one.mutant.name} | {tests or 'nobody'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
