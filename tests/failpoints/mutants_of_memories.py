"""What is taken out of memories, consolidation and souls."""

from tests.failpoints.mutant import Change, Mutant

CLAIMS = "shared/store/claims.py"
CONSOLIDATION = "shared/store/consolidation.py"
EXTRACTION = "worker/extraction.py"
LEASES = "shared/store/leases.py"
MEMORIES = "shared/store/memories.py"
RECALL = "shared/store/recall.py"
MEMORY_TESTS = "tests/shared/test_memories.py"
HELD = "shared/store/held_memories.py"
HELD_TESTS = "tests/shared/test_held_memories.py"
PAGES = "shared/store/memory_pages.py"
BATCH_TESTS = "tests/shared/test_batches.py"
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
                RECALL,
                "and m.user_id = :user and m.character_id = :character\n        {{newest}}",
                "and m.character_id = :character\n        {{newest}}",
            ),
        ),
        (f"{MEMORY_TESTS} two_characters",),
    ),
    Mutant(
        "another character's memories are recalled",
        (
            Change(
                RECALL,
                "and m.user_id = :user and m.character_id = :character\n        {{newest}}",
                "and m.user_id = :user\n        {{newest}}",
            ),
        ),
        (f"{MEMORY_TESTS} two_characters",),
    ),
    Mutant(
        "a crowded character is told of others",
        (
            Change(
                RECALL,
                "where keys is not null\n                    "
                'and keys @> array[{KEY.format(character=":character_name", word="word")}]',
                "where words @@ plainto_tsquery('simple', word)",
            ),
            Change(RECALL, "where {_OF_OWNER} and {_RECALLABLE}", "where {_RECALLABLE}"),
        ),
        (f"{MEMORY_TESTS} crowded_character_is_found",),
    ),
    Mutant(
        "a memory whose words were changed is told as it was",
        (
            Change(
                PAGES,
                "update characters c set updated_at = clock_timestamp()",
                "update characters c set name = c.name",
            ),
        ),
        (f"{HELD_TESTS} changed_words",),
    ),
    Mutant(
        "a memory that is committed late is never held",
        (
            Change(
                HELD,
                "[self._places[key] for key in split_keys(keys)]",
                "[self._places[key] for key in split_keys(keys) if key in self._places]",
            ),
        ),
        (f"{HELD_TESTS} committed_later",),
    ),
    Mutant(
        "what was undone is recalled",
        (
            Change(
                RECALL,
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
                RECALL,
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
        (Change(EXTRACTION, 'if self._said[no].role == "user":', "if no:"),),
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
        (Change(EXTRACTION, "wanted in text and words", "words"),),
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
    Mutant(
        "messages that were taken back are learned from a batch",
        (
            Change(
                CONSOLIDATION,
                'line.state == "answered" and line.on_branch',
                'line.state == "answered"',
            ),
        ),
        (f"{BATCH_TESTS} taken_back",),
    ),
    Mutant(
        "a range goes with a batch again and again",
        (Change(CONSOLIDATION, "if line is None and batched and", "if batched and"),),
        (f"{BATCH_TESTS} without_an_answer",),
    ),
    Mutant(
        "a batch that comes to nothing keeps its ranges",
        (
            Change(
                "shared/store/batches.py",
                "returning session_id, user_id, first\n    ), due as (",
                "returning session_id, user_id, first + 1 as first\n    ), due as (",
            ),
        ),
        ("tests/worker/test_batches.py comes_to_nothing",),
    ),
    Mutant(
        "a batch is made again without looking for it",
        (
            Change(
                "worker/batches.py", "if batch.sends and (begun", "if batch.model == '' and (begun"
            ),
        ),
        ("tests/worker/test_batches.py made_twice",),
    ),
    Mutant(
        "what was learned since a batch was asked is learned again",
        (Change(EXTRACTION, "(*material.known, *since)", "material.known"),),
        ("tests/worker/test_batches.py learned_meanwhile",),
    ),
]
