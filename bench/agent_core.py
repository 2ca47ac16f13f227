"""What an agent costs: `python -m bench.agent_core [--out FILE]`.

CPU of importing the library, memory of idle agents, time to create one, CPU of a run of two turns.
The file also holds the coverage that `make coverage` measures, in per cent: `coverage` of lines and
branches together, `branch_coverage`. They are written in by hand and kept.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from agent_core import Agent, AgentOptions, Message, ToolResultMessage, UserMessage
from agent_core.messages import text_result
from agent_core.testing import SCRIPTED_MODEL, Reply, ScriptedModel, answer, call, calls
from agent_core.tools import tool

ROOT = Path(__file__).parents[1]
REPEATS = 7
AGENTS = 10_000
MESSAGES = 50
RUNS = 500
DELTAS = 100
TEXT = "The keeper climbs the stairs to light the lamp before the ships come in at dusk. "

_IMPORT = (
    "import time; begun = time.process_time(); import agent_core; "
    "print(time.process_time() - begun)"
)


@tool(effect="pure")
async def look(place: str) -> str:
    """Look at a place."""
    return f"Nothing moves at the {place}."


OPTIONS = AgentOptions(
    initial_state={"system_prompt": "SP", "model": SCRIPTED_MODEL, "tools": [look]}
)


def transcript(number: int) -> list[Message]:
    """Return MESSAGES messages: turns with a call each; no text is shared between agents."""
    messages: list[Message] = []
    for turn in range(MESSAGES // 5):
        said = f"{number} {turn} {TEXT}"
        messages += [
            UserMessage(f"{said}?"),
            calls(call(f"c{number}-{turn}", "look", place=f"mill {turn}"), text=f"{said}."),
            ToolResultMessage(f"c{number}-{turn}", "look", text_result(f"{said}!")),
            answer(f"{said}; {said}"),
            UserMessage(f"{said}, thanks"),
        ]
    return messages


def import_seconds() -> float:
    """CPU of `import agent_core` in a new process, beside what Python itself costs."""
    argv = [sys.executable, "-c", _IMPORT]
    ran = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    return float(ran.stdout)


def idle_agent_bytes() -> float:
    """Memory per agent, its messages included."""
    gc.collect()
    tracemalloc.start()
    agents = []
    for number in range(AGENTS):
        agent = Agent(OPTIONS)
        agent.replace_messages(transcript(number))
        agents.append(agent)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / len(agents)


def creation_seconds() -> float:
    """CPU per agent of creating one."""
    begun = time.process_time()
    for _ in range(AGENTS):
        Agent(OPTIONS)
    return (time.process_time() - begun) / AGENTS


def run_seconds() -> float:
    """CPU of a run of two turns: a call of a tool, then an answer of DELTAS deltas."""
    return asyncio.run(_run_seconds())


async def _run_seconds() -> float:
    words = " ".join(["word"] * DELTAS)
    script: list[Reply] = [calls(call("c", "look", place="x")), words] * RUNS
    agent = Agent(
        AgentOptions(
            initial_state={"model": SCRIPTED_MODEL, "tools": [look]},
            stream_fn=ScriptedModel(script),
        )
    )
    begun = time.process_time()
    for _ in range(RUNS):
        agent.clear_messages()
        await agent.prompt("hi")
    return (time.process_time() - begun) / RUNS


def median(measure: Callable[[], float], scale: float, digits: int) -> float:
    """The median of REPEATS measurements, in another unit."""
    return round(statistics.median(measure() for _ in range(REPEATS)) * scale, digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "agent_core.json")
    out = parser.parse_args().out
    kept = json.loads(out.read_text()) if out.exists() else {}
    result = kept | {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "repeats": REPEATS,
        "import_cpu_ms": median(import_seconds, 1e3, 1),
        "creation_us": median(creation_seconds, 1e6, 2),
        "idle_agents": AGENTS,
        "idle_agent_messages": MESSAGES,
        "idle_agent_bytes": round(idle_agent_bytes()),
        "run_of_two_turns_cpu_ms": median(run_seconds, 1e3, 3),
        "run_of_two_turns_deltas": DELTAS,
    }
    text = json.dumps(result, indent=2) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
