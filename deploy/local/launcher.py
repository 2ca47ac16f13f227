"""`make up`: starts everything on this machine in order, keeps it running, and stops it in
reverse order.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from deploy.local.embeddings import words_alone
from deploy.local.errors import GivenUpError, LaunchError, StartFailedError
from deploy.local.home import Home
from deploy.local.model import LocalModelProcess, ModelProcess, ScriptedModelProcess
from deploy.local.options import Llm, Options
from deploy.local.ports import require_free
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import Child, Command, log_tail, run
from deploy.local.server import HOST, ROOT, answers, fetch
from deploy.local.supervisor import Policy, Supervisor
from deploy.local.valkey import EmbeddedValkey
from deploy.local.warden import MARK, Warden

_LONGEST_DRAIN = 30.0  # seconds
_READY = re.compile(r"\bready\.")
_TAIL = 10  # lines of a log shown when a child is given up


def says_ready(output: Iterable[str]) -> bool:
    """Tell whether a worker's Celery has said that it is ready."""
    return any(_READY.search(line) for line in output)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Our own processes. The gateway finds its address in FIRESIDE_HOST and PORT."""

    migrate: Sequence[str] = (sys.executable, "-m", "shared.migrate")
    gateway: Sequence[str] = (sys.executable, "-m", "api")
    worker: Sequence[str] = (
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel", "INFO"),
        # There is one worker, so nobody to gossip with.
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    )
    embed: Sequence[str] = (sys.executable, "-m", "worker.embed")


class Gateway(Child):
    """The HTTP process, ready when it says so at the page's address."""

    def __init__(self, page: str, command: Command) -> None:
        super().__init__(command)
        self._health = f"{page}healthz"

    def probe(self) -> bool:
        """Ask once."""
        return answers(self._health)


class Worker(Child):
    """The worker process, ready when its Celery says so: what the gateway lists may be of a worker
    of the last run. Where the log leaves that out it has to do. `page` is None if that needs a key.
    """

    def __init__(self, page: str | None, command: Command) -> None:
        super().__init__(command)
        self._agents = f"{page}v1/agents" if page is not None else None
        level = (command.env or os.environ).get("FIRESIDE_LOG_LEVEL") or "info"
        self._says_so = level.lower() in {"debug", "info"}

    def probe(self) -> bool:
        """Look into its log, or ask once."""
        if self._says_so:
            return says_ready(self.output())
        if self._agents is None:
            return True
        body = fetch(self._agents)
        return body is not None and bool(json.loads(body)["agents"])


class Interrupted(BaseException):
    """A signal asked the launcher to end. Not an Exception, so that no handler takes it for a
    failure.
    """


class Launcher:
    """One run of everything; `up` returns the exit code."""

    def __init__(
        self, options: Options, *, programs: Programs | None = None, policy: Policy | None = None
    ) -> None:
        self._options = options
        self._programs = programs or Programs()
        self._policy = policy
        self._home = Home(options.home)
        self._began = time.monotonic()

    def up(self) -> int:
        """Run until a signal asks to end (0) or something cannot be run (1, after a line that
        says why).
        """
        with _interruptible():
            try:
                self._home.require_alone()  # else our own port would be another program's
                require_free(self._options.host, self._options.port)
                with self._home.opened() as lock:
                    self._run(lock)
            except Interrupted:
                report("stopped")
                return 0
            except LaunchError as error:
                _explain(error)
                return 1
            except OSError as error:  # a file or disk that fails where nobody expects it
                _explain(LaunchError(str(error)))
                return 1
        return 0

    def _run(self, lock: int) -> None:
        mark = secrets.token_hex(8)
        os.environ[MARK] = mark
        warden = Warden(mark, lock=lock)
        supervisor = Supervisor(report=report, warden=warden, policy=self._policy)
        try:
            self._start(supervisor)
            supervisor.run()
        except Interrupted:
            report("stopping ...")
            raise
        finally:
            self._home.forget_settings()
            try:
                supervisor.stop()
            except Interrupted:  # the user will not wait
                supervisor.kill()
            warden.close()

    def _start(self, supervisor: Supervisor) -> None:
        home, options = self._home, self._options
        report("starting ...")
        postgres = EmbeddedPostgres(home.postgres, log=home.log("postgres"))
        valkey = EmbeddedValkey(home.valkey, log=home.log("valkey"))
        model = self._model()
        servers: list[Child] = [postgres, valkey] if model is None else [postgres, valkey, model]
        for server in servers:
            supervisor.add(server)
        supervisor.wait_ready(postgres, valkey)
        made = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "PORT": str(options.port),
            "FIRESIDE_HOST": options.host,
            "FIRESIDE_AUTH": options.auth,
        }
        environment = {
            **os.environ,
            **made,
            # Whoever presses Ctrl-C wants an end; what is cut off goes on at the next start.
            "FIRESIDE_DRAIN_SECONDS": os.environ.get("FIRESIDE_DRAIN_SECONDS") or "5",
            **_model_environment(model),
        }
        self._migrate(environment)
        self._home.keep_settings(made)
        ours = [self._gateway(environment), self._worker(environment)]
        for child in ours:
            supervisor.add(child)
        supervisor.wait_ready(*servers, *ours)
        self._make_vectors(supervisor, environment)
        self._announce(model)

    def _model(self) -> ModelProcess | None:
        log = self._home.log("model")
        match self._options.llm:
            case Llm.LOCAL:
                return LocalModelProcess(log=log)
            case Llm.SCRIPTED:
                return ScriptedModelProcess(log=log)
            case Llm.NONE:
                return None

    def _migrate(self, environment: Mapping[str, str]) -> None:
        log = self._home.log("migrate")
        command = Command(
            name="migrate",
            argv=self._programs.migrate,
            env=environment,
            cwd=ROOT,
            log=log,
            start_timeout=300.0,
        )
        code, output = run(command)
        if code:
            why = output[-1].strip() if output else "it said nothing"
            raise StartFailedError(f"the database could not be migrated: {why}", log=log)

    def _gateway(self, environment: Mapping[str, str]) -> Child:
        command = self._command("gateway", self._programs.gateway, environment)
        return Gateway(self._options.page, command)

    def _worker(self, environment: Mapping[str, str]) -> Child:
        command = self._command("worker", self._programs.worker, environment)
        page = self._options.page if self._options.auth == "none" else None
        return Worker(page, command)

    def _command(
        self, name: str, program: Sequence[str], environment: Mapping[str, str]
    ) -> Command:
        """How one of our processes that drain is run."""
        return Command(
            name=name,
            argv=program,
            env=environment,
            cwd=ROOT,
            log=self._home.log(name),
            stop_timeout=_LONGEST_DRAIN,
        )

    def _make_vectors(self, supervisor: Supervisor, environment: Mapping[str, str]) -> None:
        """Start the process that makes vectors, last: nobody waits for it, and until it has its
        model memories are found by their words.
        """
        if why := words_alone(os.environ):
            report(f"memories are found by their words alone: {why}")
            return
        command = self._command("embed", self._programs.embed, environment)
        supervisor.add(Child(command), needed=False)

    def _announce(self, model: ModelProcess | None) -> None:
        named = os.environ.get("FIRESIDE_MODEL") or "none"
        took = time.monotonic() - self._began
        report(f"ready after {took:.1f} s: {self._options.page}")
        report(f"model: {model.model if model else named}; data and logs: {self._home.path}")
        report(f'commands: make run CMD="api.keys list"; settings: {self._home.settings}')
        report("Ctrl-C stops everything")


def report(line: str) -> None:
    """Print a line for the user; nobody may be there any more to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"fireside: {line}", flush=True)


def _model_environment(model: ModelProcess | None) -> dict[str, str]:
    """Say where the model is; without one of ours the operator's own variables stand."""
    if model is None:
        return {}
    # Where the machine's way out is a proxy, ours is asked beside it.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = direct if direct == "*" else f"{direct},{HOST}".lstrip(",")
    return {
        "FIRESIDE_MODEL": f"openai/{model.model}",
        "FIRESIDE_MODEL_URL": model.url,
        "FIRESIDE_MODEL_API_KEY": "local",
        "no_proxy": direct,
        "NO_PROXY": direct,
    }


def _explain(error: LaunchError) -> None:
    lines = [f"fireside: {error}"]
    if isinstance(error, StartFailedError) and error.log is not None:
        lines[0] += f" (log: {error.log})"
        if isinstance(error, GivenUpError):
            lines += [f"  {line}" for line in log_tail(error.log)[-_TAIL:]]
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the signals that ask to end into Interrupted, as long as the block runs."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # it is under nohup
        signals.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, interrupt) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
