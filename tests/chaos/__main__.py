"""`python -m tests.chaos`: real processes under seeded faults, judged from outside.

    python -m tests.chaos --seed 7 --actions 240     one seed
    python -m tests.chaos --seeds 20                 many, with the report docs/chaos.md

The last line of one seed says what was lost, doubled, out of order or missing; the exit code is 1
if anything was. The same seed makes the same plan.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.local.server import ROOT
from tests.chaos.plan import Plan, make_plan
from tests.chaos.report import write_report
from tests.chaos.run import Result, run, summary
from tests.pgbouncer import pooled

RESULTS = ROOT / "bench" / "results" / "chaos.jsonl"
REPORT = ROOT / "docs" / "chaos.md"


def run_seed(seed: int, options: argparse.Namespace) -> Result:
    """Run one seed in a folder that is kept only where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    folder.chmod(0o755)  # Postgres may run as another account
    plan = make_plan(seed, actions=options.actions, faults=options.faults)
    keep = True
    try:
        result = asyncio.run(perform(plan, folder, pooler=options.pooler))
        keep = options.keep or not result.good
        if keep:
            (folder / "history.json").write_text(json.dumps(asdict(result.history)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if keep:
        print(f"kept in {folder}")
    return result


async def perform(plan: Plan, folder: Path, *, pooler: bool) -> Result:
    """Run a plan; a SIGTERM ends it as Ctrl-C does: with everything that was started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(plan, folder, front=pooled if pooler else None)


def tell(result: Result) -> None:
    """Print what there is to know of a run."""
    row = result.row()
    print(json.dumps({name: value for name, value in row.items() if name != "recoveries"}))
    for defect in result.defects[:40]:
        print(f"  {defect.kind}: {defect.what}")
    for crash in result.crashes:
        print(f"  {crash.target} ended by itself with {crash.how}: {crash.said}")
    if result.left:
        print(f"  still open for their clients: {result.left[:10]}")
    command = f"make chaos SEED={result.plan.seed} ACTIONS={len(result.plan.actions)}"
    print(f"seed {result.plan.seed}: {command} FAULTS={result.plan.faults}", flush=True)


def main() -> int:
    """Read the command line and run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds, from 1 on")
    parser.add_argument("--actions", type=int, default=240)
    parser.add_argument("--faults", type=int, default=40, help="that strike processes and servers")
    parser.add_argument("--pooler", action="store_true", help="reach Postgres through pgbouncer")
    parser.add_argument("--keep", action="store_true", help="keep logs and history of good runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON rows, one a seed")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1) if options.seed is None else [options.seed]
    rows: list[dict[str, Any]] = []
    good = True
    for seed in seeds:
        result = run_seed(seed, options)
        tell(result)
        rows.append(result.row())
        good = good and result.good
        if options.seed is None:
            options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
            write_report(rows, options.report)
    print(summary(rows))
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)  # as a shell says it of Ctrl-C
