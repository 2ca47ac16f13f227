"""What one story task takes: `python -m bench.story [--says N] [--out FILE]`.

The Last Lamp is played in this process against the scripted model over HTTP, which counts a token
for every four characters of a prompt. Its answers come either at once, so that the time is our own,
or as a small hosted model's would: 0.3 s to the first token, a second for the narration.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_core import Model
from deploy.local.model import ScriptedModelProcess
from deploy.models.control import ScriptedModel
from shared.encoding import JsonObject
from worker.agents import Resources
from worker.in_process import InProcess, MemorySession
from worker.ink.compiler import compile_story
from worker.ink.engine import InkEngine
from worker.ink.library import read_story
from worker.story import StoryAgent

ROOT = Path(__file__).parents[1]
STORY = ROOT / "stories" / "last-lamp"
NARRATION = (
    "You take your time over it. The fog leans on the door while you do, and somewhere below, on "
    "the water, a rope complains against a post. Nobody answers it. The fire in the basket settles "
    "with a sound like somebody sitting down. "
) * 2
NO_CHOICE = json.dumps({"choice": None, "confidence": 0.9, "check": None, "reason": "a small deed"})
NO_CHANGE = json.dumps({"changes": {}, "contradictions": []})


@dataclass(frozen=True)
class Setting:
    """A story and a model: `first` and `whole` are its seconds to the first token and in all."""

    compiled: str
    url: str
    first: float = 0.0
    whole: float = 0.0

    def script(self, hand: ScriptedModel) -> None:
        brief = {"ttft": self.first, "duration": self.whole / 4}
        hand.reset()
        hand.script(
            {"match": {"system": "You are the referee"}, "reply": {"text": NO_CHOICE, **brief}},
            {"match": {"system": "You keep the books"}, "reply": {"text": NO_CHANGE, **brief}},
            {"reply": {"text": NARRATION, "ttft": self.first, "duration": self.whole}},
        )

    async def play(self, says: int) -> JsonObject:
        """The figures of `says` free texts and of as many choices, over as many sessions."""
        self.script(ScriptedModel(self.url))
        engine = InkEngine(self.compiled)

        async def read(story_hash: str) -> str:
            return self.compiled

        model = Model("scripted", "openai", base_url=self.url, max_attempts=1)
        runner = InProcess({"story": StoryAgent()}, Resources(model, "none", read))
        session = MemorySession("story", "last-lamp", engine.hash)
        await runner.act(session, {"type": "start"})
        taken, choices, calls = [], [], []
        for number in range(says + 1):
            said = {"type": "say", "text": f"I look around once more, for the {number + 1}th time"}
            result, ms = await timed(runner, session, said)
            if number == 0:
                continue  # the first one opens connections
            taken.append(ms)
            calls += result["decision"]["calls"]
            first = {"type": "choose", "choice_id": session.view["choices"][0]["id"]}
            choices.append((await timed(runner, session, first))[1])
            if session.view["state"]["ended"]:
                await runner.act(session, {"type": "start"})
        return {
            "calls_per_say": len(calls) / says,
            "say_ms_median": round(statistics.median(taken), 1),
            "choose_ms_median": round(statistics.median(choices), 1),
            "tokens_per_say": round(sum(call["tokens"] for call in calls) / says),
            "by_purpose": by_purpose(calls),
        }


async def timed(
    runner: InProcess, session: MemorySession, action: JsonObject
) -> tuple[JsonObject, float]:
    begun = time.perf_counter()
    event = await runner.act(session, action)
    ms = (time.perf_counter() - begun) * 1000
    if event.type != "task_completed":
        raise SystemExit(f"{event.type}: {event.data}")
    result: JsonObject = event.data["result"]
    return result, ms


def by_purpose(calls: list[JsonObject]) -> Mapping[str, Any]:
    purposes = dict.fromkeys(call["purpose"] for call in calls)
    return {
        purpose: {
            "tokens_mean": round(statistics.mean(tokens_of(calls, purpose))),
            "ms_median": statistics.median(
                call["ms"] for call in calls if call["purpose"] == purpose
            ),
        }
        for purpose in purposes
    }


def tokens_of(calls: list[JsonObject], purpose: str) -> list[int]:
    return [call["tokens"] for call in calls if call["purpose"] == purpose]


async def run(says: int) -> JsonObject:
    source = read_story(STORY)
    main = source.files[source.main]
    unjudged = {**source.files, source.main: main.replace("# judged:", "# judge: off\n# judged:")}
    judged = compile_story(source.files, source.main).json
    without = compile_story(unjudged, source.main).json
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedModelProcess(log=Path(folder) / "model.log") as server,
    ):
        url = server.url
        figures = {
            "answers at once": await Setting(judged, url).play(says),
            "answers at once, no judge": await Setting(without, url).play(says),
            "0.3 s and 1 s": await Setting(judged, url, 0.3, 1.0).play(max(3, says // 8)),
            "0.3 s and 1 s, no judge": await Setting(without, url, 0.3, 1.0).play(
                max(3, says // 8)
            ),
        }
    return {**figures, "saved_without_judge": saved(figures)}


def saved(figures: Mapping[str, JsonObject]) -> JsonObject:
    whole, part = figures["answers at once"], figures["answers at once, no judge"]
    slow, slow_part = figures["0.3 s and 1 s"], figures["0.3 s and 1 s, no judge"]
    tokens = whole["tokens_per_say"] - part["tokens_per_say"]
    ms = slow["say_ms_median"] - slow_part["say_ms_median"]
    return {
        "calls": whole["calls_per_say"] - part["calls_per_say"],
        "tokens": tokens,
        "share_of_tokens": round(tokens / whole["tokens_per_say"], 3),
        "ms_of_our_own": round(whole["say_ms_median"] - part["say_ms_median"], 1),
        "ms_with_a_hosted_model": round(ms, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--says", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "story.json")
    options = parser.parse_args()
    result = {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "says": options.says,
        **asyncio.run(run(options.says)),
    }
    text = json.dumps(result, indent=2) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
