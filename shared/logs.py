"""Structured logs: one line an event, no secrets, no text of users.

What an error says may quote what a user said, whoever raised it. So of errors that are not our
own the logs tell where and what kind they are, and no more.
"""

import logging
import sys
import traceback
from collections.abc import Iterator

import structlog

from shared.errors import FiresideError
from shared.settings import Settings

_CHATTY = ("celery.worker.strategy", "celery.app.trace", "httpx")
"""Loggers that write a line for every hint or request, which costs more than the hint itself."""

_QUOTING = ("httpcore", "mcp", "openai", "websockets", "uvicorn.error")
"""Loggers that write what goes over a line, where they are let."""

_SILENT = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
"""Loggers that write requests into their messages even where they warn; what failed is told by
those who called."""


def set_up_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's logs to standard error in one format."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared_steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_told),
        _without_results,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_steps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in (*_CHATTY, *_QUOTING):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    structlog.configure(
        processors=[*shared_steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def _told(exc_info: structlog.typing.ExcInfo) -> str:
    """An error with those that led to it: where they came from, but not what they say."""
    return "\n".join(_lines(exc_info[1], set()))


def _lines(error: BaseException, told: set[int]) -> Iterator[str]:
    told.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in told:
        yield from _lines(before, told)
        yield "which led to"
    yield "Traceback (most recent call last):"
    yield from (line.rstrip() for line in traceback.format_tb(error.__traceback__))
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    yield f"{kind}: {error}" if isinstance(error, FiresideError) else kind
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            if id(one) not in told:
                yield "which holds"
                yield from _lines(one, told)


def _without_results(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """asyncio shows tasks with what they raised or gave."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
