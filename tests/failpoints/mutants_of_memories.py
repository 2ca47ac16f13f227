"""What is taken out of memories, consolidation and souls."""

from tests.failpoints.mutant import Change, Mutant

CLAIMS = "shared/store/claims.py"
CONSOLIDATION = "shared/store/consolidation.py"
EXTRACTION = "worker/extraction.py"
LEASES = "shared/store/leases.py"
MEMORIES = "shared/store/memories.py"
MEMORY_TESTS = "tests/shared/test_memories.py"
READING_TESTS = "tests/shared/test_consolidation.py"
GATE_TESTS = "tests/worker/test_extraction.py"

_LEASE_HELD = "        if row is None:\n            return None\n        if edits:"

OF_MEMORIES = [
    Mutant(
        "memories are written beside the end and not with it",
        (
            Change(
                MEMORIES,
                "from fence, jsonb_to_recordset(cast(:memories as jsonb))",
                "from (select user_id, character_id, next_message as first_message,"
                " clock_timestamp() as at from sessions where id = :session) as fence,"
                " jsonb_to_recordset(cast(:memories as jsonb))",
            ),
        ),
        (f"{MEMORY_TESTS} lost_lease",),
    ),
    Mutant(
        "an end of no worker's leaves a branch of memories",
        (
            Change(
                MEMORIES,
                "set on_branch = false\n        from fence\n",
                "set on_branch = false\n        from (select next_message as first_message"
                " from sessions where id = :session) as fence\n",
            ),
        ),
        (f"{MEMORY_TESTS} leaves_the_branch",),
    ),
    Mutant(
        "another user's memories are recalled",
        (
            Change(
                MEMORIES,
                "crowd.crowded and m.user_id = :user and m.character_id = :character",
                "crowd.crowded and m.character_id = :character",
            ),
        ),
        (f"{MEMORY_TESTS} two_characters",),
    ),
    Mutant(
        "another character's memories are recalled",
        (
            Change(
                MEMORIES,
                "crowd.crowded and m.user_id = :user and m.character_id = :character",
                "crowd.crowded and m.user_id = :user",
            ),
        ),
        (f"{MEMORY_TESTS} two_characters",),
    ),
    Mutant(
        "a crowded character is told of others",
        (
            Change(
                MEMORIES,
                "select id from memories\n            where keys is not null\n"
                "                and keys @> array[hashtextextended(:character_name || word, 0)]",
                "select id from memories\n"
                "            where words @@ plainto_tsquery('simple', word)",
            ),
            Change(MEMORIES, "where {_OF_OWNER} and {_RECALLABLE}", "where {_RECALLABLE}"),
        ),
        (f"{MEMORY_TESTS} crowded_character_is_found",),
    ),
    Mutant(
        "what was undone is recalled",
        (
            Change(
                MEMORIES,
                "or m.no <= (select s.head_message",
                "or true or m.no <= (select s.head_message",
            ),
        ),
        (f"{MEMORY_TESTS} undone_is_not",),
    ),
    Mutant(
        "a branch that was left is recalled once there are new messages",
        (
            Change(
                MEMORIES,
                "update memories m set on_branch = false",
                "update memories m set on_branch = true",
            ),
        ),
        (f"{MEMORY_TESTS} leave_an_undone_branch",),
    ),
    Mutant(
        "what is not true any more is recalled",
        (
            Change(
                MEMORIES,
                "\n            and (m.valid_to is null or m.valid_to > clock_timestamp())",
                "",
            ),
        ),
        (f"{MEMORY_TESTS} not_true_any_more",),
    ),
    Mutant(
        "memories are written for another user's character",
        (
            Change(
                MEMORIES, "where c.id = :character and c.user_id = :user", "where c.id = :character"
            ),
        ),
        (f"{MEMORY_TESTS} another_users_character",),
    ),
    Mutant(
        "a range of messages is consolidated twice",
        (Change(CONSOLIDATION, " and consolidated = :first - 1\n", "\n"),),
        ("tests/shared/test_consolidation.py ends_of_one_range",),
    ),
    Mutant(
        "two consolidations of a session are ordered at once",
        (
            Change(
                CONSOLIDATION,
                "if (await connection.execute(_UNDER_WAY, under_way)).first() is not None:",
                "if not under_way:",
            ),
        ),
        ("tests/shared/test_consolidation.py orders_at_once",),
    ),
    Mutant(
        "what only the agent said is learned",
        (Change("worker/extraction.py", 'if one.role == "user" and wanted', "if wanted"),),
        ("tests/worker/test_extraction.py bear_out",),
    ),
    Mutant(
        "a session is shown each new soul at once",
        (Change(CLAIMS, "o.version = s.soul_version", "o.version = c.soul_version"),),
        ("tests/shared/test_souls.py began_with",),
    ),
    Mutant(
        "a soul is merged without the lease",
        (
            Change(
                LEASES,
                "        if row is None:\n            return None\n        if edits:",
                "        if edits:",
            ),
        ),
        ("tests/shared/test_souls.py lost_the_lease",),
    ),
    Mutant(
        "a consolidation is kept without the lease",
        (Change(LEASES, _LEASE_HELD, "        if edits:"),),
        (f"{READING_TESTS} lost_the_lease",),
    ),
    Mutant(
        "what is known is learned again",
        (
            Change(
                EXTRACTION,
                "if said is None or self._is_known(words, ended):",
                "if said is None:",
            ),
        ),
        (f"{GATE_TESTS} not_kept_again",),
    ),
    Mutant(
        "what the user did not say in the range is learned",
        (
            Change(
                EXTRACTION,
                "for one in material.said if first <= one.no <= last}",
                "for one in material.said}",
            ),
        ),
        (f"{GATE_TESTS} outside_of_the_range",),
    ),
    Mutant(
        "a quote that nobody said is taken",
        (Change(EXTRACTION, "wanted in _squeezed(one.text) and words", "words"),),
        (f"{GATE_TESTS} bear_out",),
    ),
    Mutant(
        "what is refused ends what was known",
        (
            Change(
                EXTRACTION,
                'words, ended = _words(text), self._ended(raw.get("replaces"))',
                'words, ended = _words(text), self._ended(raw.get("replaces"))\n'
                "        self._replaced.update(ended)",
            ),
        ),
        (f"{GATE_TESTS} refused_ends_nothing", f"{GATE_TESTS} known_once"),
    ),
    Mutant(
        "a later attempt asks what is known by then",
        (
            Change(
                "worker/consolidation.py",
                'if start.outcome == "done" and start.output is not None:',
                "if start.output is not None and material is None:",
            ),
        ),
        ("tests/worker/test_consolidation.py what_the_first_one_asked",),
    ),
]
