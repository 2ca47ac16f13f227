"""What is taken out of the ledger, of budgets and of what an erasure does to both."""

from tests.failpoints.mutant import Change, Mutant

USAGE = "shared/store/usage.py"
BUDGETS = "shared/store/budgets.py"
METERING = "worker/metering.py"
TABLES = "shared/migrations/versions/0004_usage.py"
LEDGER_TESTS = "tests/shared/test_usage.py"
BUDGET_TESTS = "tests/shared/test_budgets.py"
METER_TESTS = "tests/worker/test_metering.py"

OF_LEDGER = [
    Mutant(
        "a call is entered outside of the fence",
        (
            Change(
                USAGE,
                "from fence, jsonb_to_recordset(cast(:usage as jsonb))",
                "from (select clock_timestamp() as at) as fence,"
                " jsonb_to_recordset(cast(:usage as jsonb))",
            ),
        ),
        (f"{LEDGER_TESTS} without_the_lease",),
    ),
    Mutant(
        "a call is entered twice",
        (
            Change(USAGE, "        on conflict do nothing\n", ""),
            Change(TABLES, ",\n    PRIMARY KEY (session_id, task_id, attempt, no)\n", "\n"),
        ),
        (f"{LEDGER_TESTS} sent_twice",),
    ),
    Mutant(
        "a call that was entered already is charged again",
        (
            Change(
                USAGE,
                "from new_usage having count(*) > 0",
                "from (select 1 as attempt, 0 as no, fence.at at time zone 'UTC' as at,"
                " (coalesce(u.usd, 0) + u.estimated_usd) * u.mark_up as billed from fence,"
                " jsonb_to_recordset(cast(:usage as jsonb)) as u(usd numeric,"
                " estimated_usd numeric, mark_up numeric)) as new having count(*) > 0",
            ),
        ),
        (f"{LEDGER_TESTS} sent_twice",),
    ),
    Mutant(
        "a lost call is entered beside what was told of it",
        (Change(USAGE, "where u.outcome <> 'lost' or not exists (", "where true or not exists ("),),
        (f"{LEDGER_TESTS} unless_its_attempt_has_told",),
    ),
    Mutant(
        "calls of an attempt that was lost are forgotten",
        (
            Change(
                "worker/task_log.py",
                "            self._on_late(self._claim, [numbered])\n            return\n",
                "            return\n",
            ),
        ),
        (f"{METER_TESTS} after_its_attempt_was_lost",),
    ),
    Mutant(
        "calls of a write that failed are forgotten",
        (
            Change(
                "worker/task_log.py",
                "                self._enter_late(ledger)\n                # The store has tried",
                "                # The store has tried",
            ),
        ),
        (f"{METER_TESTS} write_that_failed",),
    ),
    Mutant(
        "calls of an end that failed are forgotten",
        (
            Change(
                "worker/task_log.py",
                "                self._enter_late(ledger)\n"
                "                raise self._lose(error) from error",
                "                raise self._lose(error) from error",
            ),
        ),
        (f"{METER_TESTS} write_that_failed",),
    ),
    Mutant(
        "a budget is not looked at before a call",
        (Change(METERING, "            await self._check()\n", ""),),
        (
            f"{METER_TESTS} budget_is_spent",
            "tests/worker/test_ledger.py overrun_by_no_more",
        ),
    ),
    Mutant(
        "a budget is looked at before the first call only",
        (Change(METERING, "        if self._asked:\n", "        if self._left is None:\n"),),
        (f"{METER_TESTS} makes_no_further_one",),
    ),
    Mutant(
        "a budget is looked at before the last call is entered",
        (
            Change(
                "worker/task_log.py",
                "        if self._ledger or self._lock.locked():\n            await self.flush()\n",
                "",
            ),
        ),
        (f"{METER_TESTS} every_call_in_it",),
    ),
    Mutant(
        "calls side by side are paid from the same last cent",
        (
            Change(
                METERING,
                "taken = self._under_way * self._tariff.reserve",
                "taken = 0",
            ),
        ),
        (f"{METER_TESTS} side_by_side",),
    ),
    Mutant(
        "a claim does not ask what is left",
        (Change("shared/store/claims.py", "if task.reserved is None:", "if task is not None:"),),
        (f"{BUDGET_TESTS} a_claim_knows",),
    ),
    Mutant(
        "a reservation outlasts its task",
        (
            Change(
                "shared/store/actions.py",
                "and user_id = :user and status in ('queued', 'running')\n    ), purse",
                "and user_id = :user\n    ), purse",
            ),
            Change(
                BUDGETS,
                "where t.user_id = :user and t.status in ('queued', 'running')",
                "where t.user_id = :user",
            ),
        ),
        (f"{BUDGET_TESTS} then_settled", f"{BUDGET_TESTS} gives_its_reservation_back"),
    ),
    Mutant(
        "what is reserved is not counted as spent",
        (
            Change(
                "shared/store/actions.py",
                "case when w.key_id = '' then t.by_user else t.by_key end), false)",
                "0 * t.by_user), false)",
            ),
        ),
        (f"{BUDGET_TESTS} then_settled",),
    ),
    Mutant(
        "a session is made with a key that is gone",
        (
            Change(
                "shared/store/sessions.py",
                "        await api_keys.hold(connection, user_id, new.key_id)\n",
                "",
            ),
        ),
        (
            "tests/shared/test_erasure.py nothing_is_made",
            "tests/api/test_me.py no_notice_comes",
        ),
    ),
    Mutant(
        "a key is looked for and not held",
        (Change("shared/store/api_keys.py", "\n    for key share\n", "\n"),),
        ("tests/shared/test_erasure.py stopped_by_the_erasure",),
    ),
    Mutant(
        "an erasure leaves the user's name in the ledger",
        (Change("shared/store/erasure.py", "    await forget(connection, user_id)\n", ""),),
        ("tests/shared/test_erasure.py nothing_is_left",),
    ),
    Mutant(
        "an erasure leaves the ids of sessions and tasks in the ledger",
        (
            Change(
                USAGE,
                "key_id = '', session_id = gen_random_uuid(),\n        task_id = gen_random_uuid()",
                "key_id = ''",
            ),
        ),
        (f"{LEDGER_TESTS} name_that_says_nothing", "tests/shared/test_erasure.py nothing_is_left"),
    ),
    Mutant(
        "a call that comes after its user's erasure has the user's name",
        (
            Change(
                USAGE,
                "if not await _is_known(connection, claim.user_id):",
                "if await _is_known(connection, claim.user_id) is None:",
            ),
        ),
        (f"{LEDGER_TESTS} after_its_user_was_erased",),
    ),
]
