"""Recall: the memories of a character that may bear on a cue, and how each stands to it.

Every statement names the user and the character. Which of them bear on the cue most, and what is
told of them, `agent_core.recall` decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from shared.encoding import well_formed
from shared.memories import DEFAULT_LANGUAGE, NOTHING_RECALLED, MemoryMatches
from shared.store.columns import (
    Column,
    doubles,
    longs,
    packed,
    reals,
    shorts,
    texts,
    times,
    unpacked,
    uuids,
)
from shared.store.database import Database, Parameters
from shared.store.exchange import kept
from shared.store.held_memories import HeldMemories
from shared.store.memories import KEY
from shared.unsegmented import FEW_SIGNS, asked_signs, spelled

CROWD = 2_000
"""From so many memories on a character is found by indexes instead of being read whole."""

LONGEST_INDEXED = 4_000
"""The most numbers of a vector that pgvector's graph takes."""

CUE_CHARACTERS = 2_000
CUE_WORDS = 48
"""What is looked at of a cue: its beginning, and so many different words."""

# The words of a cue, as the words of memories are told. Which of them a memory has, `HeldMemories`
# knows: to ask each memory costs Postgres as much as all the rest of a recall.
_ASKED = """asked as materialized (
        select (words || array(
            select sign from unnest(cast(:signs as text[])) as sign
            where sign <> all(words)))[1:cast(:most_words as int)] as words
        from (select tsvector_to_array(
            to_tsvector(cast(:language as regconfig), :cue)) as words) as spelled
    )"""

# What may be recalled. Of a session that was taken back by an undo, nothing behind its head: there
# are few of those, so they are looked for once and not with each memory.
_RECALLABLE = """m.on_branch
            and (m.valid_to is null or m.valid_to > clock_timestamp())
            and (m.kind = 'turn' and m.session_id = :session
                 and m.no >= :shown_from) is not true
            and (m.session_id is null or m.no is null
                 or m.session_id <> all(array(
                    select s.id from sessions s
                    where s.character_id = :character and s.user_id = :user
                        and coalesce(s.head_message, 0) < s.next_message - 1))
                 or m.no <= (select s.head_message from sessions s where s.id = m.session_id))"""

# What is the same for each cue, as `HeldMemories` has it.
_OWN = (
    uuids("m.id"),
    texts("coalesce(cast(m.session_id as text), '')"),
    texts("m.kind"),
    longs("coalesce(m.no, 0)"),
    shorts("m.part"),
    texts("m.role"),
    texts("m.speaker"),
    texts("m.text"),
    reals("m.importance"),
    times("m.said_at"),
    texts("array_to_string(tsvector_to_array(m.words), '\n')"),
)

# What depends on the cue: which may be recalled at all, and how like it their vectors are where it
# has one.
_LIKENESS = doubles("""case when m.model = :model and vector_dims(m.vector) = :dimension
            then -(m.vector <#> cast(:vector as halfvec)) else 'NaN' end""")
_RECALLED = (uuids("m.id"),)
_LIKE = (*_RECALLED, _LIKENESS)

_READ = ", ".join(
    f"m.{name}"
    for name in (
        *("id", "session_id", "kind", "no", "part", "role", "speaker", "text", "importance"),
        *("said_at", "created_at", "words", "vector", "model"),
    )
)

_OF_CHARACTER = f"""with {_ASKED}, crowd as materialized (
        select exists (
            select from crowds where character_id = :character and user_id = :user) as crowded
    ), owner as materialized (
        select updated_at from characters where id = :character and user_id = :user
    )"""

# The limit keeps them apart, and so of a crowded character nothing is read: as a condition of the
# join, Postgres would look at it with each of a hundred thousand rows.
_EACH = f"""from (
        select {_READ}, {_RECALLABLE} as is_recallable
        from memories m
        where not (select crowded from crowd)
            and m.user_id = :user and m.character_id = :character
        {{newest}}
    ) m"""


def _recall(of_cue: Sequence[Column]) -> TextClause:
    """The statement that reads each memory of a character, unless it is a crowded one.

    Many may have come that nobody has counted yet: no more than the newest are read, however many
    there are.
    """
    return kept(
        f"""/* recall */
    {_OF_CHARACTER}
    select (select crowded from crowd), (select words from asked),
        (select updated_at from owner), max(m.created_at),
        {packed(of_cue, of="m.is_recallable")}, {packed(_OWN)}
    {_EACH.format(newest=f"order by said_at desc limit {CROWD}")}
    """
    )


def _recall_new(of_cue: Sequence[Column]) -> TextClause:
    """The same for who holds the character's memories: of those there comes no more than the id.

    They are of any use until the character's row changes, as it does where the words of a memory
    do. All that is new comes, for what is in the window now may be recalled later on. It is mostly
    little, so it is read by its keys: each column of it would else be asked of each memory. And
    mostly there are not too many to be looked at, so they are not put in order to find out.
    """
    names = ", ".join(f"c{no}" for no in range(len(of_cue)))
    return kept(
        f"""/* recall new */
    {_OF_CHARACTER}
    select (select crowded from crowd) or of_all > {CROWD}, (select words from asked),
        (select updated_at from owner), until, {names}, own.*
    from (
        select count(*), max(m.created_at), array_agg(m.id) filter (where (
                m.created_at <= cast(:until as timestamptz)
                and (select updated_at from owner) = cast(:held_since as timestamptz)
            ) is not true),
            {packed(of_cue, of="m.is_recallable")}
        {_EACH.format(newest=f"limit {CROWD + 1}")}
    ) as found(of_all, until, new_ids, {names})
    cross join lateral (
        select {packed(_OWN)} from unnest(found.new_ids) as new(id)
        join memories m on m.id = new.id
        where m.user_id = :user and m.character_id = :character
    ) as own
    """
    )


_RECALLS = [_recall(_RECALLED), _recall(_LIKE)]
_RECALLS_NEW = [_recall_new(_RECALLED), _recall_new(_LIKE)]
"""Without a vector of the cue, and with one."""

# In a form that no index has: by that of a character Postgres would read a crowded one whole after
# all, for it expects few rows.
_OF_OWNER = "m.user_id || '' = :user and m.character_id::text = :character_name"

# A crowded character is not read whole. Its words are found by keys that are its own, its vectors
# by the graph, which knows no characters. The newest stand for all where z-scores are taken, and
# may have no keys yet: without vectors nobody gives any but `shared.store.vectors.tend`.
_RECALL_SOME = f"""/* recall some */
    with {_ASKED}, worded as (
        select found.id from asked cross join unnest(asked.words) as word cross join lateral (
            select id, count(*) over () as frequency from (
                select id from memories
                where keys is not null
                    and keys @> array[{KEY.format(character=":character_name", word="word")}]
                limit greatest(:per_word, :of_words / cardinality(asked.words))) as having_it
        ) as found
        group by found.id order by sum(ln(1024 / cast(found.frequency as float))) desc limit :worded
    ), near as materialized (
        select m.id, m.session_id, m.no from memories m
        where {{indexed}} and m.keys is not null and vector_dims(m.vector) = {{dimension}}
            and {_OF_OWNER} and m.model = :model and m.on_branch
        order by (m.vector::halfvec({{dimension}})) <#> cast(:vector as halfvec({{dimension}}))
        limit :near
    ), beside as (
        select m.id from near
        join memories m on m.session_id = near.session_id
            and m.no between near.no - 1 and near.no + 1
    ), newest as (
        select id from memories
        where user_id = :user and character_id = :character order by said_at desc limit :newest
    )
    select count(*) filter (where m.keys is null), (select words from asked),
        {packed(_LIKE)}, {packed(_OWN)}
    from (select id from worded union select id from near union select id from beside
          union select id from newest) as found
    join memories m on m.id = found.id
    where {_OF_OWNER} and {_RECALLABLE}
    """

# Enough for the wanted ones behind what the graph finds of other characters; of a word that very
# many have, some by chance: the index gives none before it has all that it is to give.
_WANDER = text(
    """/* recall wander */
    select set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config('hnsw.ef_search', '100', true),
        set_config('gin_fuzzy_search_limit', '256', true)
    """
)

PER_WORD = 64
OF_WORDS = 2_048
"""How many memories of a crowded character are looked up by a word of the cue: of all words so
many, and of each at least so many. What a hundred thousand of them have by the thousand tells them
apart least, so Postgres takes but a sample of those (`_WANDER`)."""

WORDED = 192
NEAR = 128
NEWEST = 100
"""How many are looked at: of those that have the rarest or most of the words, by their vectors with
their neighbours, and of the newest."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector as text, `[0.1,...]`, of unit length, with the name of the model that made it."""

    model: str
    dimension: int
    text: str


@dataclass(frozen=True, slots=True)
class Cue:
    """What is to be recalled, by whom, and what they see already.

    `session_id` is the session that asks: of its turns, those from message `shown_from` on are in
    its window.
    """

    user_id: str
    character_id: UUID
    text: str
    language: str = DEFAULT_LANGUAGE
    session_id: UUID | None = None
    shown_from: int = 1


@dataclass(frozen=True, slots=True)
class Recalled:
    """What may bear on a cue, in no order; of most characters these are all their memories.

    `grown`: there have come to be so many that some may not be found until they have keys
    (`shared.store.vectors.tend`).
    """

    matches: MemoryMatches
    grown: bool


async def recall(
    db: Database, cue: Cue, vector: Vector | None, held: HeldMemories | None = None
) -> Recalled:
    """Find the memories that may bear on a cue.

    Args:
        vector: the cue's. Memories whose vector is another model's are found by words alone.
        held: what was read of the character before; brought up to date.
    """
    held = HeldMemories() if held is None else held
    said = well_formed(cue.text[:CUE_CHARACTERS]).replace("\0", "")
    parameters = {
        "user": cue.user_id,
        "character": cue.character_id,
        "cue": spelled(said),
        "language": cue.language,
        "signs": asked_signs(said, FEW_SIGNS),
        "most_words": CUE_WORDS,
        "session": cue.session_id,
        "shown_from": cue.shown_from,
        "model": None if vector is None else vector.model,
        "dimension": 0 if vector is None else vector.dimension,
        "vector": None if vector is None else vector.text,
    }
    of_cue = _RECALLED if vector is None else _LIKE
    matches = None
    while matches is None:
        known = {"until": held.until, "held_since": held.since}
        holds = held.since is not None
        statement = (_RECALLS_NEW if holds else _RECALLS)[vector is not None]
        ((too_many, words, since, until, *found),) = await db.rows(
            statement, {**parameters, **known}, binary=True
        )
        if too_many:
            held.drop()
            if holds:
                continue
            return await _recalled_of_crowd(db, cue, vector, parameters)
        held.take(since, until, unpacked(_OWN, found[len(of_cue) :]))
        # What was written earlier and committed later than the newest of those is missing.
        matches = _matches(words, found[: len(of_cue)], held)
        if matches is None:
            held.drop()
    # Of the newest that were read, not all may be recalled.
    return Recalled(matches, grown=len(matches.hits) > CROWD * 3 // 4)


async def _recalled_of_crowd(
    db: Database, cue: Cue, vector: Vector | None, parameters: Parameters
) -> Recalled:
    sizes = {
        "per_word": PER_WORD,
        "of_words": OF_WORDS,
        "worded": WORDED,
        "near": NEAR,
        "newest": NEWEST,
    }
    parameters = {**parameters, **sizes, "character_name": str(cue.character_id)}
    statement = _recall_some(vector.dimension if vector else 0)
    _, result = await db.together((_WANDER, {}), (statement, parameters), binary=True)
    ((keyless, words, *found),) = result.rows
    found_now = HeldMemories()
    found_now.take(None, None, unpacked(_OWN, found[len(_LIKE) :]))
    matches = _matches(words, found[: len(_LIKE)], found_now)
    assert matches is not None  # what was found was read
    return Recalled(matches, grown=keyless > NEWEST // 2)


def _matches(
    words: Sequence[str], of_cue: Sequence[Any], held: HeldMemories
) -> MemoryMatches | None:
    """How memories that are held match a cue; None where one is not held."""
    keys, *of_vector = of_cue
    if keys is None:
        return NOTHING_RECALLED
    likeness = None
    if of_vector:
        likeness = [None if isnan(one) else one for one in _LIKENESS.read(of_vector[0])]
    return held.match(keys, words, likeness)


def _recall_some(dimension: int) -> TextClause:
    """An index on vectors is on those of one length, so that must stand in the statement; without
    an index nothing is looked for."""
    indexed = 1 <= dimension <= LONGEST_INDEXED
    return text(
        _RECALL_SOME.format(dimension=int(dimension) if indexed else 1, indexed=str(indexed))
    )
