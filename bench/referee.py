"""How often free text finds its choice: `python -m bench.referee [--no-local] [--out FILE]`.

60 sentences of ours at 15 places of two stories, each with the choice that it means, or none. The
second story is read from the data beside the checkout and left out where there is none. Of the
four ways to rule, the one by the scripted model only shows that numbers reach the right choices: it
is told the answers. A wrong choice is worse than none, for it moves the story.
"""

import argparse
import asyncio
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from agent_core import AbortSignal, MemoryJournal, Model
from deploy.local.model import LocalModelProcess, ModelProcess, ScriptedModelProcess
from deploy.models.control import ScriptedModel
from worker.agents import Resources, RunningTask
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
from worker.ink.library import read_story
from worker.minilm import EmbeddingsMissingError, MiniLm
from worker.referee import SCHEMA, Ruling, question, read, settle, stats_of, system_prompt
from worker.story_calls import StoryCalls
from worker.story_scene import Scene, rules_of
from worker.story_words import match

ROOT = Path(__file__).parents[1]
SENTENCES = ROOT / "bench" / "data" / "free_text.json"
STORIES = {
    "last-lamp": ROOT / "stories" / "last-lamp",
    "TheIntercept": ROOT / "../shared/data/ink/TheIntercept.ink",
}

LEVELS = [level / 100 for level in range(20, 90, 5)]
CLEARLY = 0.05


@dataclass(frozen=True)
class Sentence:
    """What a player might write at a place, and the index of the choice that it means."""

    story: str
    scene: Scene
    says: str
    means: int | None


Figures: TypeAlias = dict[str, Any]
Rule: TypeAlias = Callable[[Sentence], Awaitable[int | None]]


def sentences() -> Iterator[Sentence]:
    for story, places in json.loads(SENTENCES.read_text()).items():
        if not STORIES[story].exists():
            continue
        source = read_story(STORIES[story])
        engine = InkEngine(compile_story(source.files, source.main).json)
        for place in places:
            turn = engine.advance(seed=1)
            for pick in place["picks"]:
                turn = engine.advance(turn.save, turn.choices[pick].id)
            ids = "\n".join(choice.id for choice in turn.choices)
            if hashlib.sha256(ids.encode()).hexdigest()[:16] != place["choices"]:
                raise SystemExit(f"{story} has other choices after {place['picks']} than it had")
            scene = Scene(engine, rules_of(engine), turn, turn.text)
            for one in place["sentences"]:
                yield Sentence(story, scene, one["says"], one["means"])


# The four ways to rule


async def by_words(one: Sentence) -> int | None:
    return match(one.says, [choice.text for choice in one.scene.turn.choices])[0]


def picked(likeness: Sequence[float], least: float) -> int | None:
    """The likest choice, if it is like enough and clearly more so than the next one."""
    best, *rest = sorted(range(len(likeness)), key=lambda index: -likeness[index])
    clear = not rest or likeness[best] - likeness[rest[0]] >= CLEARLY
    return best if likeness[best] >= least and clear else None


@dataclass
class Asked:
    """A model asked for every sentence: its answers, and what they took."""

    model: Model
    replies: dict[str, str | None] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)

    async def alone(self, one: Sentence) -> int | None:
        """Ask, and take what the model says and nothing else."""
        calls, scene = StoryCalls(task_of(self.model)), one.scene
        reply = await calls.ask(
            "referee",
            system_prompt(scene.rules, stats_of(scene)),
            question(scene, one.says),
            SCHEMA,
        )
        self.replies[one.says] = reply
        self.tokens += [call["tokens"] for call in calls.made]
        return index_of(None if reply is None else read(reply, scene))

    async def played(self, one: Sentence) -> int | None:
        """What the referee makes of the model's answer: where it is not sure, the words speak."""
        return index_of(settle(self.replies[one.says], one.scene, one.says))

    def unusable(self, data: Sequence[Sentence]) -> int:
        """How many of the answers were none."""
        replies = [(self.replies[one.says], one.scene) for one in data]
        return sum(reply is None or read(reply, scene) is None for reply, scene in replies)


def index_of(ruling: Ruling | None) -> int | None:
    return None if ruling is None or ruling.choice is None else ruling.choice.index


def task_of(model: Model) -> RunningTask:
    async def no_story(story_hash: str) -> str:
        raise AssertionError(story_hash)

    return RunningTask(
        user_id="bench",
        session_id=UUID(int=1),
        task_id=UUID(int=1),
        action={},
        story=None,
        story_hash=None,
        character={},
        metadata={},
        state={},
        view={},
        history=[],
        resources=Resources(model, "none", no_story),
        emit=lambda event: None,
        journal=MemoryJournal(),
        signal=AbortSignal(),
    )


# Measuring


async def measured(rule: Rule, data: Sequence[Sentence]) -> Figures:
    answers, times = [], []
    for one in data:
        begun = time.perf_counter()
        answers.append(await rule(one))
        times.append((time.perf_counter() - begun) * 1000)
    pairs = list(zip(data, answers, strict=True))
    figures = counted(pairs)
    figures["ms_median"] = round(statistics.median(times), 2)
    figures["stories"] = {
        story: counted([pair for pair in pairs if pair[0].story == story])
        for story in dict.fromkeys(one.story for one in data)
    }
    return figures


def counted(pairs: Sequence[tuple[Sentence, int | None]]) -> Figures:
    right = sum(one.means == answer for one, answer in pairs)
    wrong = sum(answer is not None and one.means != answer for one, answer in pairs)
    return {
        "sentences": len(pairs),
        "accuracy": round(right / max(1, len(pairs)), 3),
        "right": right,
        "wrong_choice": wrong,
        "missed": len(pairs) - right - wrong,
    }


async def embeddings(data: Sequence[Sentence]) -> Figures:
    """By likeness alone. How like is enough is chosen on one story and measured on the other."""
    embedder = MiniLm()
    likeness: dict[str, list[float]] = {}

    async def compare(one: Sentence) -> int | None:
        said = embedder.embed(one.says)
        choices = one.scene.turn.choices
        likeness[one.says] = [float(said @ embedder.embed(choice.text)) for choice in choices]
        return None

    timed = await measured(compare, data)
    least = {
        story: max(
            LEVELS,
            key=lambda level: sum(
                picked(likeness[one.says], level) == one.means for one in data if one.story != story
            ),
        )
        for story in timed["stories"]
    }

    async def rule(one: Sentence) -> int | None:
        return picked(likeness[one.says], least[one.story])

    figures = await measured(rule, data)
    return {**figures, "ms_median": timed["ms_median"], "least_likeness": least}


async def over_http(
    server: ModelProcess, data: Sequence[Sentence], *, told: bool = False
) -> Mapping[str, Figures]:
    asked = Asked(Model(server.model, "openai", base_url=server.url, max_attempts=1))
    hand = ScriptedModel(server.url)

    async def rule(one: Sentence) -> int | None:
        if told:
            number = None if one.means is None else one.means + 1
            answer = {"choice": number, "confidence": 0.9, "check": None, "reason": "told"}
            hand.say(json.dumps(answer))
        return await asked.alone(one)

    figures = await measured(rule, data)
    figures["unusable_answers"] = asked.unusable(data)
    figures["tokens_per_call"] = round(statistics.mean(asked.tokens))
    return {"alone": figures, "as played": await measured(asked.played, data)}


async def run(*, local: bool) -> Figures:
    data = list(sentences())
    never = counted([(one, None) for one in data])
    ways: Figures = {"never any choice": never, "words": await measured(by_words, data)}
    try:
        ways["embeddings"] = await embeddings(data)
    except EmbeddingsMissingError as error:
        ways["embeddings"] = {"left_out": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        with ScriptedModelProcess(log=Path(folder) / "scripted.log") as server:
            ways["prompt, scripted model"] = await over_http(server, data, told=True)
        if local:
            with LocalModelProcess(log=Path(folder) / "local.log") as server:
                ways["prompt, local model"] = await over_http(server, data)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-local", action="store_true", help="leave out the local model")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "referee.json")
    options = parser.parse_args()
    result = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "ways": asyncio.run(run(local=not options.no_local)),
    }
    text = json.dumps(result, indent=2) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
