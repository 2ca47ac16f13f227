"""What statements call up: `python -m bench.cues [--json]`.

Sixty statements of ours, each meant to call up something that was said before without naming it,
among a hundred and twenty things that were said. Ranked four ways through the real store: by
vectors alone, by words alone, as a question is, and as a statement is, which is ours.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_core.candidates import Candidate
from agent_core.recall import WEIGHTS, is_question, rank
from bench.locomo import Conversation, Sitting, Turn
from bench.memory import choose_embedder, measured, replay, rows_of, vectors_of
from shared.settings import Settings
from shared.store.database import Database
from shared.store.recall import Cue, recall
from worker.embed import Filling, check
from worker.embedders import Embedder

DATA = Path(__file__).parent / "data" / "cues.json"
FIRST = (1, 5, 10, 20)

DENSE = replace(WEIGHTS, statement_words=0.0)
WAYS: Mapping[str, Callable[[str, Sequence[Candidate]], list[Candidate]]] = {
    "vectors alone": lambda cue, found: rank(cue, found, DENSE),
    "words alone": lambda cue, found: rank(cue, [one._replace(likeness=None) for one in found]),
    "as a question": lambda cue, found: rank(f"{cue}?", found),
    "ours": rank,
}


def conversation(pairs: Sequence[Mapping[str, str]], other: Sequence[str]) -> Conversation:
    """What was said, mixed: one of each in turn, in sittings of ten."""
    said = [
        text for two in zip((pair["said"] for pair in pairs), other, strict=True) for text in two
    ]
    turns = [Turn(text, "Ada", text) for text in said]
    sittings = [
        Sitting(number, datetime(2026, 1, 1 + number, 9, tzinfo=UTC), turns[at : at + 10])
        for number, at in enumerate(range(0, len(turns), 10))
    ]
    return Conversation("statements", ("Ada", "Ember"), sittings, [])


async def run(url: str, embedder: Embedder) -> dict[str, Any]:
    """Write, ask, rank; the share of cues whose memory is among the first."""
    data = json.loads(DATA.read_text("utf-8"))
    db = Database.from_settings(Settings(database_url=SecretStr(url)))
    hits: dict[str, dict[int, list[float]]] = {way: {k: [] for k in FIRST} for way in WAYS}
    try:
        replayed = await replay(db, conversation(data["pairs"], data["other"]))
        await Filling(db, embedder, await check(db, embedder)).fill()
        vectors = await vectors_of(embedder, [pair["cue"] for pair in data["pairs"]])
        for pair, vector in zip(data["pairs"], vectors, strict=True):
            assert not is_question(pair["cue"]), pair
            cue = Cue(replayed.user, replayed.character, pair["cue"])
            found = rows_of((await recall(db, cue, vector)).matches)
            for way, ranking in WAYS.items():
                texts = [one.text for one in ranking(pair["cue"], found)]
                for k in FIRST:
                    hits[way][k].append(float(pair["said"] in texts[:k]))
    finally:
        await db.close()
    shares = {
        way: {str(k): round(statistics.fmean(of_way[k]), 4) for k in FIRST}
        for way, of_way in hits.items()
    }
    return {"embeddings": embedder.name, "cues": len(data["pairs"]), "hits": shares}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cues", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--out", type=Path, help="a file for the same")
    options = parser.parse_args()
    embedder = choose_embedder("best")
    result = measured(lambda url: run(url, embedder))
    print(f"{result['cues']} statements, vectors by {result['embeddings']}")
    print(f"{'':16}{''.join(f'hit@{k:<6}' for k in FIRST)}")
    for way, shares in result["hits"].items():
        print(f"{way:16}{''.join(f'{100 * shares[str(k)]:<10.1f}' for k in FIRST)}")
    if options.json:
        print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
