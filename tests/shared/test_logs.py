"""Log lines: one JSON object each, from structlog and from the standard library alike."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.errors import LeaseLost
from shared.logs import set_up_logs
from shared.settings import load_settings


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(load_settings())

    structlog.get_logger("gateway").info("accepted", seq=3, text="two\nlines")
    logging.getLogger("library").warning("slow %s", "answer")
    structlog.get_logger("gateway").debug("not written")

    found = lines(capsys)
    assert [{key: one[key] for key in one if key != "timestamp"} for one in found] == [
        {
            "event": "accepted",
            "level": "info",
            "logger": "gateway",
            "seq": 3,
            "text": "two\nlines",
        },
        {"event": "slow answer", "level": "warning", "logger": "library"},
    ]
    assert all(one["timestamp"].endswith("Z") for one in found)


def test_an_error_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(load_settings())

    said = "what a user said"
    try:
        int(said)
    except ValueError:
        structlog.get_logger("worker").exception("failed")

    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("failed", "error")
    assert line["exception"].startswith("Traceback (most recent call last):\n  File ")
    assert line["exception"].endswith("int(said)\nValueError")


def _fail(said: str) -> None:
    group = ExceptionGroup(said, [ValueError(said), LeaseLost("a-session")])
    raise RuntimeError(said) from group


def test_what_errors_say_is_told_only_of_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(load_settings())
    said = "what a user said"

    for log in (structlog.get_logger("worker"), logging.getLogger("library")):
        try:
            _fail(said)
        except RuntimeError as error:
            error.__context__ = error  # a circle, as odd libraries make them
            log.exception("failed")

    for line in lines(capsys):
        assert said not in str(line)
        kinds = [one for one in line["exception"].splitlines() if not one.startswith(("  ", "Tr"))]
        assert kinds == [
            "ExceptionGroup",
            "which holds",
            "ValueError",
            "which holds",
            "shared.errors.LeaseLost: a-session",
            "which led to",
            "RuntimeError",
        ]


def test_loggers_that_quote_are_kept_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESIDE_LOG_LEVEL", "debug")
    set_up_logs(load_settings())

    quoting = ("httpcore", "mcp.client.streamable_http", "openai", "websockets.server", "httpx")
    for name in quoting:
        logging.getLogger(name).info("GET /?q=what+a+user+said")
    logging.getLogger("LiteLLM").error("what a user said")
    logging.getLogger("asyncio").error("never retrieved\nfuture: what a user said")

    assert [line["event"] for line in lines(capsys)] == ["never retrieved"]


def test_text_and_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESIDE_LOG_FORMAT", "text")
    monkeypatch.setenv("FIRESIDE_LOG_LEVEL", "error")
    set_up_logs(load_settings())

    structlog.get_logger("worker").warning("not written")
    structlog.get_logger("worker").error("written", seq=3)

    (line,) = capsys.readouterr().err.splitlines()
    assert "written" in line
    assert "seq=3" in line
