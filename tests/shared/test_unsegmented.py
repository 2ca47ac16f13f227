"""Words without blanks: what is cut apart, what stands for it, and that memories are found so."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from shared.memories import NewMemory, words_of
from shared.store import characters, memories, memory_pages, rewording, vectors
from shared.store.database import Database
from shared.store.held_memories import HeldMemories
from shared.store.memory_pages import Wanted
from shared.store.recall import Cue, recall
from shared.unsegmented import FEW_SIGNS, asked_signs, index_signs, pairs, spelled
from tests.shared.locks import lock_waiters
from tests.shared.sessions import ME
from tests.shared.test_memories import answer, chat, exchange, hits, recalled, user
from tests.waiting import within

CHINESE = ["我的狗叫Rex。", "我在2019年结婚了", "狗很可爱", "我养了一只猫"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("我的狗叫Rex。", ["Rex。"]),
        ("我在2019年结婚了", ["2019"]),
        ("iPhone15を買った", ["iPhone15"]),
        ("สวัสดีRexครับ", ["Rex"]),
        ("나의 개는 Rex입니다", ["나의", "개는", "Rex", "입니다"]),
        ("学校에서 Rex와", ["에서", "Rex", "와"]),
        ("\uff32\uff45\uff58は\uff12\uff10\uff11\uff19年生まれ", ["Rex", "2019"]),
        ("佐々木さん", []),
    ],
)
def test_words_with_blanks_are_parted_from_those_without(said: str, words: list[str]) -> None:
    assert spelled(said).split() == words


@pytest.mark.parametrize(
    "said",
    ["", "My dog is called Rex.", "größer  \u201cmir\u201d 5 % мир 🐕 e\u0301", "שלום", "ab\n"],
)
def test_other_texts_stay_as_they_are(said: str) -> None:
    assert spelled(said) == said
    assert index_signs(said) == asked_signs(said, FEW_SIGNS) == []
    assert words_of("Ada", said) == {"spelled": None, "signs": []}


def test_pairs_are_of_unsegmented_scripts_only() -> None:
    assert pairs("去北京 and 茶") == ["去北", "北京", "茶"]
    assert pairs("plain words, größer, мир") == []
    assert pairs("강아지는") == ["강아", "아지", "지는"]


def test_single_signs_are_in_the_index_and_in_few_cues() -> None:
    assert index_signs("去北京 and 茶") == ["去北", "北京", "茶", "去", "北", "京"]
    assert index_signs("犬は") == ["犬は", "犬"]
    assert asked_signs("去北京 and 茶") == ["去北", "北京", "茶"]
    assert asked_signs("去北京", few=3) == ["去北", "北京", "去", "北", "京"]
    assert asked_signs("去北京啊", few=3) == ["去北", "北京", "京啊"]
    # Among kana a sign is most often a word.
    assert asked_signs("개는 어디서")[-1] == "개"
    assert asked_signs("お茶と犬が") == ["お茶", "茶と", "と犬", "犬が", "茶", "犬"]


def test_a_speaker_is_among_the_words() -> None:
    words = words_of("王小明Li", "Hi")

    assert words["spelled"].split() == ["Li:", "Hi"]
    assert words["signs"] == ["王小", "小明", "王", "小", "明"]


async def character(db: Database, *said: str, language: str = "simple") -> UUID:
    made = await characters.create(db, ME, "companion", "Ember", "")
    await memories.add(db, ME, made.id, [NewMemory("fact", one, language=language) for one in said])
    return made.id


async def found(db: Database, who: UUID, cue: str, language: str) -> list[set[str]]:
    """What a search finds, and what a recall by words."""
    searched = await memory_pages.search(db, ME, Wanted(who), cue, limit=9, language=language)
    called_up = (await recall(db, Cue(ME, who, cue, language=language), None)).matches
    return [{one.text for one in searched}, {one.text for one in called_up.rows() if one.hits}]


@pytest.mark.parametrize("language", ["simple", "english"])
@pytest.mark.parametrize(
    ("cue", "expected"),
    [
        ("Rex", {"我的狗叫Rex。"}),
        ("What about rex?", {"我的狗叫Rex。"}),
        ("Rex呢", {"我的狗叫Rex。"}),
        ("2019", {"我在2019年结婚了"}),
        ("狗", {"我的狗叫Rex。", "狗很可爱"}),
        ("猫", {"我养了一只猫"}),
        ("茶 狗", {"我的狗叫Rex。", "狗很可爱"}),
        ("可爱", {"狗很可爱"}),
        ("鱼", set()),
    ],
)
async def test_what_stands_within_chinese_is_found(
    db: Database, language: str, cue: str, expected: set[str]
) -> None:
    who = await character(db, *CHINESE, language=language)

    if cue == "可爱":  # as short as that a recall asks by each sign, too
        assert (await found(db, who, cue, language))[0] == expected
    else:
        assert await found(db, who, cue, language) == [expected, expected]


@pytest.mark.parametrize(
    ("said", "cues"),
    [
        ("iPhone15を買った", ["iPhone15", "IPHONE15はどう?", "買"]),
        ("ペットのRexは元気です", ["Rex", "ペット", "元気?"]),
        ("犬を飼っている", ["犬", "犬はどこ?"]),
        ("佐々木さんが来た", ["佐々木", "佐々木は?"]),
        ("나의 강아지는 Rex입니다", ["Rex", "강아지", "강아지가 어디 있어?"]),
        ("개를 키워요", ["개", "개는 어디 있어?"]),
        ("สวัสดีRexครับ", ["Rex", "สวัสดี"]),
        ("\uff32\uff45\uff58が来た", ["Rex", "\uff32\uff25\uff38"]),
        ("东京 Zoë 来了", ["Zoë", "东京"]),
    ],
)
async def test_mixed_texts_are_found(db: Database, said: str, cues: list[str]) -> None:
    who = await character(db, said, "Something else: 別の事, 다른 것.")

    for cue in cues:
        for one in await found(db, who, cue, "simple"):
            assert said in one, cue


async def test_a_search_in_another_language_finds_names_in_texts_without_stems(
    db: Database,
) -> None:
    who = await character(db, "我买了iPhone手机", "the things")

    assert (await found(db, who, "iPhone", "english"))[0] == {"我买了iPhone手机"}
    assert (await found(db, who, "of the", "english"))[0] == set()


async def test_a_word_counts_once(db: Database) -> None:
    who = await character(db, "狗和강아")

    (one,) = ((await recall(db, Cue(ME, who, "狗 강아"), None)).matches).rows()

    assert sorted(one.hits) == sorted({"狗", "강아", "강", "아"})


async def test_what_was_said_in_a_session_is_found(db: Database) -> None:
    session, who = await chat(db, language="zh", user_name="王小明")
    await exchange(db, session, *map(user, CHINESE), answer("Rex很可爱!"))

    assert hits(await recalled(db, who, "Rex", language="simple")) == [CHINESE[0], "Rex很可爱!"]
    assert hits(await recalled(db, who, "2019", language="simple")) == [CHINESE[1]]
    assert hits(await recalled(db, who, "王小明?", language="simple")) == CHINESE


async def test_a_change_is_found_by_what_stands_within_it(db: Database) -> None:
    who = await character(db, "nothing")
    (one,) = await memory_pages.page(db, ME, Wanted(who), limit=1)

    await memory_pages.change(db, ME, one.id, words="我的狗叫Rex")

    for cue in ("Rex", "狗"):
        assert await found(db, who, cue, "simple") == [{"我的狗叫Rex"}] * 2


# As releases before this one wrote them.
_AS_BEFORE = text(
    """
    update memories set words = to_tsvector(cast(language as regconfig), text)
        || array_to_tsvector(cast(:pairs as text[]))
    where id = :id
    """
)


async def older(db: Database, said: str, before: list[str], language: str = "simple") -> UUID:
    who = await character(db, said, language=language)
    (one,) = await memory_pages.page(db, ME, Wanted(who), limit=1)
    await db.run(_AS_BEFORE, {"id": one.id, "pairs": before})
    return who


async def test_older_memories_are_found_as_before_and_by_all_when_read_anew(db: Database) -> None:
    who = await older(db, "我的狗叫Rex", ["我的", "的狗", "狗叫"])
    plain = await older(db, "My dogs are here", [], language="english")
    (before,) = await memory_pages.page(db, ME, Wanted(who), limit=1)
    await vectors.crowd(db, ME, who, crowd=1)
    assert await found(db, who, "我的狗", "simple") == [{"我的狗叫Rex"}] * 2
    assert await found(db, who, "Rex", "simple") == [set(), set()]

    read = await rewording.page(db, after=UUID(int=0), limit=9)
    assert await rewording.read_anew(db, read) == 1
    assert await rewording.read_anew(db, read) == 0

    assert {one.text for one in read} == {"我的狗叫Rex", "My dogs are here"}
    assert await memory_pages.get(db, ME, before.id) == before
    for cue in ("Rex", "狗", "我的狗"):
        assert await found(db, who, cue, "simple") == [{"我的狗叫Rex"}] * 2
    assert await found(db, plain, "dog", "english") == [{"My dogs are here"}] * 2
    keys = text("select cardinality(keys) = length(words) as fit from memories where id = :id")
    row = await db.row(keys, {"id": before.id})
    assert row is not None
    assert row.fit


async def test_whoever_holds_a_memory_is_told_its_new_words(db: Database) -> None:
    read_anew = await older(db, "我的狗叫Rex", ["我的", "的狗", "狗叫"])
    as_it_was = await character(db, "我的猫叫Tom")
    cues = [Cue(ME, read_anew, "Rex"), Cue(ME, as_it_was, "Tom")]
    held = [HeldMemories(), HeldMemories()]
    for cue, one in zip(cues, held, strict=True):
        await recall(db, cue, None, one)
    before = held[1].since

    read = await rewording.page(db, after=UUID(int=0), limit=9)
    assert await rewording.read_anew(db, read) == 1

    for cue, one in zip(cues, held, strict=True):
        fresh = (await recall(db, cue, None)).matches
        assert (await recall(db, cue, None, one)).matches.rows() == fresh.rows()
        assert any(fresh.hits)
    assert held[1].since == before


async def test_words_are_read_anew_beside_whoever_changes_or_deletes(
    db: Database, watcher: psycopg.AsyncConnection[Any]
) -> None:
    """All of them lock the character first, and several in the order of their ids."""
    who = [await older(db, f"我的狗叫Rex{no}", ["我的"]) for no in range(3)]
    read = await rewording.page(db, after=UUID(int=0), limit=9)
    first, *_, last = sorted(who)
    async with watcher.transaction():
        await watcher.execute("select from characters where id = %s for update", (first,))
        reading = asyncio.create_task(rewording.read_anew(db, read))
        await lock_waiters(watcher)
        # Nothing behind the first one is locked yet, of memories neither.
        await watcher.execute(
            "select from characters c join memories m on m.character_id = c.id"
            " where c.id = %s or m.character_id = %s for update nowait",
            (last, first),
        )
        await watcher.execute("delete from memories where character_id = %s", (first,))

    assert await within(reading) == 2


async def test_what_was_changed_meanwhile_keeps_its_new_words(db: Database) -> None:
    who = await older(db, "我的狗叫Rex", [])
    read = await rewording.page(db, after=UUID(int=0), limit=9)
    await memory_pages.change(db, ME, read[0].id, words="我的猫叫Tom")

    assert await rewording.read_anew(db, read) == 0
    assert await found(db, who, "Tom", "simple") == [{"我的猫叫Tom"}] * 2
