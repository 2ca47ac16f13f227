"""How much of what was said is found again: `python -m bench.memory --data FILE [--json]`.

Conversations of the LoCoMo format are replayed through the real store: each sitting is a session
that ends with its turns as messages, each conversation a character of a user of its own, and the
embedding process gives vectors to what was written. Then every question of the categories 1 to 4
is recalled. No model is asked, and nothing is read that a model wrote.

Printed is the share of the evidence among the first 5, 10 and 20 memories, and inside so many
tokens of the lines that a prompt would carry. `ours` ranks with the weights that the project has,
round numbers; `fitted` with those that a logistic regression finds on all other conversations, to
show what the round numbers leave lying.

With --json the last line is an object, shares from 0 to 1: `recall` {"5", "10", "20"}, the same by
the categories' names in `by_category` with their `questions`, `coverage` {"250", .., "2000"} by
tokens, `ms` {"p50", "p95", "embedding"}, `embeddings` (their name), `questions`, `memories`; all
of `ours`. `fitted`, where there are several conversations, has the first three once more.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import text

from agent_core import AssistantMessage, TextContent, UserMessage
from agent_core.candidates import Candidate
from agent_core.recall import named_in, rank, signs
from agent_core.recalled import filled
from bench.locomo import (
    CATEGORIES,
    Conversation,
    DataError,
    Question,
    Sitting,
    add_data_options,
    read_given,
)
from bench.programs import own_folder
from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from shared.memories import MemoryMatches
from shared.migrate import migrate
from shared.records import NewEvent, NewSession, Outcome
from shared.settings import Settings
from shared.store import characters, claims, leases, sessions
from shared.store.database import Database
from shared.store.recall import Cue, Vector, recall
from worker.embed import Filling, check
from worker.embedders import Embedder, HashingEmbedder, MiniLmEmbedder, dimension_of
from worker.memories import best_of, candidates_of, memory_of, row_of
from worker.minilm import EmbeddingsMissingError

FIRST = (5, 10, 20)
TOKENS = (250, 500, 1000, 2000)

Ranking: TypeAlias = Callable[[str, Sequence[Candidate]], list[Candidate]]

# A sitting is written at once here; its turns were said when the data says so.
_SAID_AT = text(
    """
    update memories set said_at = :at + make_interval(secs => no), valid_from = :at
    where session_id = :session
    """
)


@dataclass(frozen=True)
class Replayed:
    """A conversation in the store; `places` names the turn of each session and number."""

    user: str
    character: UUID
    places: Mapping[tuple[UUID, int], str]
    language: str


@dataclass(frozen=True)
class Asked:
    """A question, what the store found to it, and how long that took in seconds."""

    question: Question
    candidates: Sequence[Candidate]
    turn_of: Mapping[Any, str]
    seconds: float


@dataclass
class Figures:
    """Shares from 0 to 1, one for each question."""

    recall: dict[int, list[float]] = field(default_factory=lambda: {k: [] for k in FIRST})
    by_category: dict[int, dict[int, list[float]]] = field(
        default_factory=lambda: {number: {k: [] for k in FIRST} for number in CATEGORIES}
    )
    coverage: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in TOKENS})

    def count(self, asked: Asked, ranked: Sequence[Candidate]) -> None:
        evidence = asked.question.evidence
        for k in FIRST:
            share = _share(evidence, asked, ranked[:k])
            self.recall[k].append(share)
            self.by_category[asked.question.category][k].append(share)
        lines = [memory_of(one) for one in ranked]
        of_id = {str(one.id): one for one in ranked}
        for tokens in TOKENS:
            taken = [of_id[one.id] for one in filled(lines, tokens)]
            self.coverage[tokens].append(_share(evidence, asked, taken))

    def as_json(self) -> dict[str, Any]:
        return {
            "recall": {str(k): _mean(shares) for k, shares in self.recall.items()},
            "by_category": {
                CATEGORIES[number]: {
                    "questions": len(of_category[FIRST[0]]),
                    **{str(k): _mean(shares) for k, shares in of_category.items()},
                }
                for number, of_category in self.by_category.items()
                if of_category[FIRST[0]]
            },
            "coverage": {str(n): _mean(shares) for n, shares in self.coverage.items()},
        }


def _share(evidence: frozenset[str], asked: Asked, found: Sequence[Candidate]) -> float:
    return len(evidence & {asked.turn_of[one.id] for one in found}) / len(evidence)


def _mean(shares: Sequence[float]) -> float:
    return round(statistics.fmean(shares), 4) if shares else 0.0


async def replay(db: Database, conversation: Conversation) -> Replayed:
    """Write a conversation as its sessions would have been."""
    user, (person, companion) = f"bench:{conversation.id}", conversation.speakers
    character = await characters.create(db, user, "companion", companion, "")
    places: dict[tuple[UUID, int], str] = {}
    for sitting in conversation.sittings:
        metadata = {"user_name": person, "language": conversation.language}
        new = NewSession("companion", character_id=character.id, metadata=metadata)
        session, _, _ = await sessions.create(db, user, new, companion)
        claim = await claims.claim(db, session.id, lease_seconds=60, history=1)
        assert claim is not None
        messages = [message.to_dict() for message in _messages(sitting, person)]
        done = [NewEvent("task_completed", {})]
        await leases.end(db, claim, Outcome("completed", done, messages))
        await db.run(_SAID_AT, {"session": session.id, "at": sitting.at})
        places |= {(session.id, no): turn.id for no, turn in enumerate(sitting.turns, start=1)}
    return Replayed(user, character.id, places, conversation.language)


def _messages(sitting: Sitting, person: str) -> Iterator[UserMessage | AssistantMessage]:
    for turn in sitting.turns:
        if turn.speaker == person:
            yield UserMessage(turn.text, timestamp=0)
        else:
            yield AssistantMessage([TextContent(turn.text)], timestamp=0)


async def ask(db: Database, replayed: Replayed, question: Question, vector: Vector) -> Asked:
    """Find what bears on a question; the time is that of statement and ranking."""
    began = time.perf_counter()
    cue = Cue(replayed.user, replayed.character, question.text, replayed.language)
    found = (await recall(db, cue, vector)).matches
    best_of(found, question.text, len(found.hits))
    seconds = time.perf_counter() - began
    rows = rows_of(found)
    turn_of = {
        one.id: replayed.places[UUID(one.place[0]), one.place[1]]
        for one in rows
        if one.place is not None
    }
    return Asked(question, rows, turn_of, seconds)


def rows_of(found: MemoryMatches) -> list[Candidate]:
    """What the store has found for a cue, each memory by itself."""
    candidates = candidates_of(found.memories)
    return [
        row_of(candidates, at)._replace(hits=hits, likeness=likeness)
        for at, (hits, likeness) in enumerate(zip(found.hits, found.likeness, strict=True))
    ]


def fitted(asked: Sequence[Asked]) -> Ranking:
    """A ranking by logistic regression on questions; raises ImportError without numpy.

    Each question's evidence counts as much as another's, and as much as all the rest. Ridge of 1,
    solved by Newton's method.
    """
    import numpy  # noqa: PLC0415 - of the extra `embeddings`

    rows, labels, counts = [], [], []
    for one in asked:
        right = [one.turn_of[candidate.id] in one.question.evidence for candidate in one.candidates]
        if not any(right) or all(right):
            continue
        rows += signs(one.candidates, _named(one.question.text, one.candidates))
        labels += right
        counts += [1 / sum(right) if hit else 4 / (len(right) - sum(right)) for hit in right]
    signs_of = numpy.array(rows)
    middle, spread = signs_of.mean(0), signs_of.std(0) + 1e-9
    table = numpy.c_[(signs_of - middle) / spread, numpy.ones(len(rows))]
    hits, counted = numpy.array(labels, dtype=float), numpy.array(counts)
    weights = numpy.zeros(table.shape[1])
    for _ in range(15):
        chance = 1 / (1 + numpy.exp(-table @ weights))
        slope = table.T @ (counted * (chance - hits)) + weights
        curve = (table * (counted * chance * (1 - chance))[:, None]).T @ table
        weights -= numpy.linalg.solve(curve + numpy.eye(len(weights)), slope)
    found = (weights[:-1] / spread).tolist()

    def ranking(cue: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        standing = signs(candidates, _named(cue, candidates))
        scores = [sum(a * b for a, b in zip(one, found, strict=True)) for one in standing]
        return [candidates[at] for at in sorted(range(len(scores)), key=lambda at: -scores[at])]

    return ranking


def _named(cue: str, candidates: Sequence[Candidate]) -> str | None:
    return named_in(cue, {one.speaker for one in candidates})


def figures(
    answered: Mapping[str, Sequence[Asked]], ranking_of: Callable[[str], Ranking]
) -> Figures:
    """Rank every question with the ranking of its conversation."""
    found = Figures()
    for conversation, asked in answered.items():
        ranking = ranking_of(conversation)
        for one in asked:
            found.count(one, ranking(one.question.text, one.candidates))
    return found


def left_out(answered: Mapping[str, Sequence[Asked]]) -> Callable[[str], Ranking]:
    """For each conversation the ranking that was fitted to all others."""

    def ranking_of(conversation: str) -> Ranking:
        others = [asked for name, asked in answered.items() if name != conversation]
        return fitted([one for asked in others for one in asked])

    return ranking_of


async def run(
    conversations: Sequence[Conversation], url: str, embedder: Embedder
) -> dict[str, Any]:
    """Replay and ask everything; the figures."""
    db = Database.from_settings(Settings(database_url=SecretStr(url)))
    try:
        replayed = [await replay(db, conversation) for conversation in conversations]
        began = time.perf_counter()
        count = await Filling(db, embedder, await check(db, embedder)).fill()
        embedding = (time.perf_counter() - began) / max(count, 1)
        answered: dict[str, list[Asked]] = {}
        for number, conversation in enumerate(conversations):
            vectors = await vectors_of(embedder, [one.text for one in conversation.questions])
            answered[f"{number} {conversation.id}"] = [
                await ask(db, replayed[number], question, vector)
                for question, vector in zip(conversation.questions, vectors, strict=True)
            ]
    finally:
        await db.close()
    seconds = sorted(one.seconds for asked in answered.values() for one in asked)
    result = figures(answered, lambda _: rank).as_json() | {
        "ms": {
            "p50": _milliseconds(seconds, 0.5),
            "p95": _milliseconds(seconds, 0.95),
            "embedding": round(embedding * 1000, 2),
        },
        "embeddings": embedder.name,
        "questions": len(seconds),
        "memories": count,
    }
    if len(answered) > 1:
        try:
            result["fitted"] = figures(answered, left_out(answered)).as_json()
        except ImportError:
            print("without numpy nothing is fitted", file=sys.stderr)
    return result


async def vectors_of(embedder: Embedder, texts: Sequence[str]) -> list[Vector]:
    made = [
        one for at in range(0, len(texts), 32) for one in await embedder.embed(texts[at : at + 32])
    ]
    return [Vector(embedder.name, dimension_of(vector), vector) for vector in made]


def _milliseconds(seconds: Sequence[float], share: float) -> float:
    return (
        round(seconds[min(len(seconds) - 1, int(share * len(seconds)))] * 1000, 2)
        if seconds
        else 0.0
    )


def table(result: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{result['questions']} questions, {result['memories']} memories, "
        f"vectors by {result['embeddings']}; no model was asked",
        "",
        f"{'':24}{''.join(f'R@{k:<8}' for k in FIRST)}{''.join(f'{n:<9}' for n in TOKENS)}tokens",
    ]
    for name, found in (("ours", result), ("fitted to the others", result.get("fitted"))):
        if found is not None:
            lines.append(_row(name, found["recall"], found["coverage"]))
            lines += [
                _row(f"  {category} ({shares['questions']})", shares, {})
                for category, shares in found["by_category"].items()
            ]
    ms = result["ms"]
    lines += [
        "",
        f"recall {ms['p50']} ms, p95 {ms['p95']} ms; {ms['embedding']} ms to embed a memory",
    ]
    return "\n".join(lines)


def _row(name: str, recall: Mapping[str, float], coverage: Mapping[str, float]) -> str:
    shares = [f"{100 * recall[str(k)]:<10.1f}" for k in FIRST]
    shares += [f"{100 * coverage[str(n)]:<9.1f}" for n in TOKENS if str(n) in coverage]
    return f"{name:24}{''.join(shares)}".rstrip()


def choose_embedder(name: str) -> Embedder:
    """MiniLM where its packages are, else hashing; or the one that is named."""
    if name == "hashing":
        return HashingEmbedder()
    try:
        return MiniLmEmbedder()
    except EmbeddingsMissingError as error:
        if name == "minilm":
            raise
        print(f"{error}; hashing stands in", file=sys.stderr)
        return HashingEmbedder()


@contextmanager
def own_database(*, durable: bool = False) -> Iterator[str]:
    """A migrated database that is gone afterwards; `durable` as a server's own."""
    with (
        own_folder() as folder,
        EmbeddedPostgres(folder / "postgres", settings=None if durable else NOT_DURABLE) as server,
    ):
        migrate(server.url)
        yield server.url


def measured(
    work: Callable[[str], Awaitable[dict[str, Any]]], *, durable: bool = False
) -> dict[str, Any]:
    """What comes of work on a database of its own."""

    async def run_it(url: str) -> dict[str, Any]:
        return await work(url)

    with own_database(durable=durable) as url:
        return asyncio.run(run_it(url))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser)
    parser.add_argument("--embeddings", choices=["best", "minilm", "hashing"], default="best")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--out", type=Path, help="a file for the same")
    options = parser.parse_args()
    try:
        conversations = read_given(options)
        if not any(one.questions for one in conversations):
            raise DataError(f"{options.data.name} has no questions with evidence")  # noqa: TRY301 - told like any other bad file
        embedder = choose_embedder(options.embeddings)
    except (DataError, EmbeddingsMissingError) as error:
        print(f"bench.memory: {error}", file=sys.stderr)
        return 1
    result = measured(lambda url: run(conversations, url, embedder))
    print(table(result))
    if options.json:
        print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
