"""The worker's Celery app: `celery -A worker.app worker`."""

import sys
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from celery import Task, signals

from shared.errors import FiresideError, SettingsError
from shared.levels import as_level
from shared.logs import set_up_logs
from shared.queue import ADVANCE, make_celery
from shared.settings import get_settings, warn_of_unknown_variables
from worker.host import Host
from worker.start import start_host

log = structlog.get_logger(__name__)

try:
    app = make_celery(get_settings())
except SettingsError as error:
    sys.exit(f"fireside: {error}")


@dataclass(slots=True)
class _Process:
    """What this process has: the host from its start to its end."""

    host: Host | None = None


_process = _Process()


@app.task(name=ADVANCE, bind=True)
def advance(task: Task, session_id: str) -> None:
    """The hint: this session has something to do. Anyone may have put it into the queue."""
    try:
        wanted = UUID(session_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("malformed hint", hint=repr(session_id)[:80])
        return
    if _process.host is not None:
        delivery = task.request.delivery_info or {}
        _process.host.submit(wanted, as_level(delivery.get("priority")))


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    set_up_logs(get_settings())


@signals.worker_init.connect
def _start(**_: Any) -> None:
    settings = get_settings()
    set_up_logs(settings)  # Celery would have it done later, and structlog's own shows variables
    warn_of_unknown_variables()
    try:
        _process.host = start_host(settings)
    except FiresideError as error:
        sys.exit(f"fireside: the worker can't start: {error}")
    except Exception as error:
        # Celery would only log it, and take hints for a host that is not there.
        log.exception("the worker can't start")
        raise SystemExit(1) from error


@signals.worker_shutting_down.connect
def _close(**_: Any) -> None:
    if _process.host is not None:
        # At once: Celery may take long to part from a broker that does not answer.
        _process.host.begin_to_drain()


@signals.worker_shutdown.connect
def _drain(sender: Any = None, **_: Any) -> None:
    if _process.host is not None:
        _process.host.drain()
        if _process.host.failure is not None and sender is not None:
            sender.exitcode = 1  # whoever started this process must see that it broke
