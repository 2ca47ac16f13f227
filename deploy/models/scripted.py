"""The scripted model: an OpenAI-compatible HTTP server that says what it is told to, for tests
and load.

    python -m deploy.models.scripted --port 0 [--host 127.0.0.1] [--script FILE] [--ready-fd N]

POST /v1/chat/completions (streamed or not), GET /v1/models, files and batches. Control: POST
/_script, /_batches, /_profile, /_release, /_reset; GET /_stats, /_requests?last=N, /_calls,
/_batches, /_wait?requests=1&timeout=5. One process, one thread.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

import uvloop
from pydantic import ValidationError

from deploy.models.connection import Connection, Stage
from deploy.models.script import Script


async def serve(
    host: str, port: int, *, script: Script | None = None, ready_fd: int | None = None
) -> None:
    """Serve until cancelled; the port is printed to `ready_fd` once it is open."""
    stage = Stage()
    if script is not None:
        stage.director.follow(script)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stage), host, port, backlog=4096)
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w") as ready:
            ready.write(f"{server.sockets[0].getsockname()[1]}\n")
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m deploy.models.scripted", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free port")
    parser.add_argument("--script", type=Path, help="a JSON file with rules, as for POST /_script")
    parser.add_argument("--ready-fd", type=int, help="an open file that gets the port when ready")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            script = _read(options.script)
            uvloop.run(serve(options.host, options.port, script=script, ready_fd=options.ready_fd))
        except (OSError, ValidationError) as error:
            sys.exit(f"the scripted model cannot start: {error}")


def _read(file: Path | None) -> Script | None:
    return None if file is None else Script.model_validate_json(file.read_bytes())


if __name__ == "__main__":
    main()
