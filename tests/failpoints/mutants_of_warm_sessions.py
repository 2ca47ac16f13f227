"""What is taken out of warm sessions: what a worker has in memory, which worker is hinted, how a
session is claimed in one exchange, and what of the servers' troubles a worker knows."""

from tests.failpoints.mutant import Change, Mutant

BEGINNINGS = "shared/store/beginnings.py"
CACHE = "worker/agent_cache.py"
SHELF = "worker/shelf.py"
CLAIMS = "shared/store/claims.py"
HOMES = "shared/homes.py"
HOST = "worker/host.py"
ROTA = "worker/rota.py"
RUNS = "worker/runs.py"
CACHE_TESTS = "tests/worker/test_agent_cache.py"
WARM_TESTS = "tests/worker/test_warm_sessions.py"

_LOST = """            await self._lost(held, run)
            return False
"""

OF_WARM_SESSIONS = [
    Mutant(
        "a session in memory is used although its row has gone on",
        (
            Change(
                "worker/transcript.py",
                "held.known is None or claim.after != held.known.head:",
                "held.known is None:",
            ),
        ),
        (f"{CACHE_TESTS} held_counts_only", f"{WARM_TESTS} of_other_messages"),
    ),
    Mutant(
        "a session in memory is used although a backup was put back",
        (
            Change(
                CLAIMS,
                "select case when lease.generation = :generation",
                "select case when :generation is not null",
            ),
        ),
        (f"{WARM_TESTS} of_other_messages",),
    ),
    Mutant(
        "a claim reads the branch only from where the caller says",
        (Change(CLAIMS, "where p.depth < :limit and m.no is distinct from p.head", "where false"),),
        (
            "tests/shared/test_leases.py what_the_caller_does_not_know",
            f"{WARM_TESTS} another_worker_has",
        ),
    ),
    Mutant(
        "a session stays in memory while it runs",
        (
            Change(
                CACHE,
                "        return self._sessions.take(session_id)",
                "        held = self._sessions.take(session_id)\n"
                "        if held is not None:\n"
                "            self.keep(session_id, held)\n"
                "        return held",
            ),
        ),
        (f"{CACHE_TESTS} taken_out", f"{WARM_TESTS} lost_leaves_nothing"),
    ),
    Mutant(
        "what a lost attempt said is kept in memory",
        (
            Change(
                RUNS,
                _LOST,
                "            told = transcript.ended(claim, held.task_log.told)\n"
                "            self._cache.keep(claim.fence.session_id, told)\n" + _LOST,
            ),
        ),
        (f"{WARM_TESTS} lost_leaves_nothing",),
    ),
    Mutant(
        "the session that was used last goes first",
        (
            Change(
                SHELF,
                "self.take(next(iter(self._entries)))",
                "self.take(next(reversed(self._entries)))",
            ),
        ),
        (f"{CACHE_TESTS} least_recently",),
    ),
    Mutant(
        "the cache takes as much memory as it likes",
        (
            Change(
                CACHE,
                "self._sessions.fit(self._most, self._most_bytes - self._characters.bytes)",
                "self._sessions.fit(self._most, self._most_bytes * 99)",
            ),
        ),
        (f"{CACHE_TESTS} bytes_are_bounded",),
    ),
    Mutant(
        "all sessions have one home",
        (Change(HOMES, "if hash > highest then", "if home == nil then"),),
        (f"{WARM_TESTS} go_to_one_worker",),
    ),
    Mutant(
        "a worker that says nothing any more is hinted all the same",
        (
            Change(
                HOMES,
                "'ZRANGEBYSCORE', KEYS[1], now, '+inf'",
                "'ZRANGEBYSCORE', KEYS[1], '-inf', '+inf'",
            ),
        ),
        (f"{WARM_TESTS} passed_over",),
    ),
    Mutant(
        "a hint that nobody heard is lost",
        (
            Change(
                HOMES,
                "redis.call('PUBLISH', KEYS[1] .. ':' .. home, hint) == 0 then",
                "redis.call('PUBLISH', KEYS[1] .. ':' .. home, hint) < 0 then",
            ),
        ),
        (f"{WARM_TESTS} nobody_hears",),
    ),
    Mutant(
        "what a frozen worker has swallowed waits",
        (Change("shared/sweep.py", "                await sweeps.doubt_latest(db)\n", ""),),
        (f"{WARM_TESTS} swallowed",),
    ),
    Mutant(
        "a full worker keeps the hints that come to it",
        (
            Change(
                ROTA,
                "            self.begin(session_id)\n        else:\n"
                "            self._do_beside(self._hint({session_id: level}))",
                "            self.begin(session_id)",
            ),
        ),
        (f"{WARM_TESTS} full_leaves",),
    ),
    Mutant(
        "a worker that stops stays a home",
        (
            Change(
                HOST,
                "            await self._home.leave(LAST_NEWS_SECONDS)\n",
                "",
            ),
        ),
        (f"{WARM_TESTS} nobodys_home",),
    ),
    Mutant(
        "a line to Redis that was reset ends a worker",
        (
            Change(
                "shared/redis_pool.py",
                "    pool.connection_class = _CLASSES[pool.connection_class]\n",
                "",
            ),
        ),
        ("tests/worker/test_host.py was_reset",),
    ),
    Mutant(
        "a write that is sent twice is made twice",
        (
            Change(
                "shared/store/leases.py",
                "\n            and writes = coalesce(cast(:writes as integer), writes)\n"
                "        returning next_event - :event_count as first_seq, clock",
                "\n            and coalesce(cast(:writes as integer), 0) >= 0\n"
                "        returning next_event - :event_count as first_seq, clock",
            ),
        ),
        (
            "tests/shared/test_outcomes.py arrive_together",
            "tests/worker/test_lost_answers.py many_cuts",
        ),
    ),
    Mutant(
        "a claim whose answer was lost is not looked for",
        (
            Change(
                CLAIMS,
                "if again and (made := await _made",
                "if history < 0 and (made := await _made",
            ),
        ),
        (
            "tests/shared/test_claims_made.py one_claim",
            "tests/worker/test_lost_answers.py one_cut",
        ),
    ),
    Mutant(
        "a claim out of the quarantine whose answer was lost is not looked for",
        (
            Change(
                CLAIMS,
                "if again and (made := await db.row",
                "if history < 0 and (made := await db.row",
            ),
        ),
        ("tests/shared/test_claims_made.py out_of_the_quarantine",),
    ),
    Mutant(
        "an attempt is lost to what its agent could not read at once",
        (
            Change(
                "worker/outage.py",
                "await self.outlast(lambda: read(*args, **kwargs))",
                "await read(*args, **kwargs)",
            ),
        ),
        ("tests/worker/test_lost_answers.py asked_for_again",),
    ),
    Mutant(
        "a claim in one exchange counts no attempt",
        (
            Change(
                CLAIMS,
                "claims = claims + 1,\n            attempts = attempts + 1,",
                "claims = claims + 1,",
            ),
        ),
        ("tests/shared/test_leases.py attempts_are_counted", "tests/shared/test_state_machine.py"),
    ),
    Mutant(
        "a claim in one exchange takes what is in quarantine",
        (
            Change(
                CLAIMS,
                "from sessions where id = :session and not quarantined and {FREE}",
                "from sessions where id = :session and {FREE}",
            ),
            Change(
                CLAIMS,
                "where s.id = :session and not quarantined and {FREE}",
                "where s.id = :session and {FREE}",
            ),
        ),
        ("tests/shared/test_quarantine.py put_apart",),
    ),
    Mutant(
        "a task of a newer release is taken",
        (
            Change(
                BEGINNINGS,
                "if found.steps > STEP_VERSION or found.events > EVENT_VERSION:",
                "if found is None:",
            ),
        ),
        ("tests/shared/test_releases.py newer_release",),
    ),
    Mutant(
        "leases of before a restart of Postgres are given away at once",
        (
            Change(
                "shared/store/sweeps.py",
                "\n            and (lease_until is null\n"
                "                or pg_postmaster_start_time() + make_interval(secs => :grace)"
                " < clock_timestamp())",
                "\n            and :grace >= 0",
            ),
        ),
        ("tests/shared/test_leases.py restart_of_postgres",),
    ),
    Mutant(
        "a clock that was set back is not looked for",
        (Change("shared/sweep.py", "if mended := await clock.mend(db):", "if mended := 0:"),),
        ("tests/shared/test_clock.py hinted_at_once",),
    ),
    Mutant(
        "a database that was put back is not noticed",
        (
            Change(
                "shared/store/lineage.py",
                "if (mark.generation, mark.beat) > (now.generation, now.beat):",
                "if mark.beat < 0:",
            ),
        ),
        ("tests/shared/test_lineage.py older_copy or what_a_mark_says",),
    ),
]
