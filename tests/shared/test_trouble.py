"""What goes on going wrong is told at once, then now and then, and when it is over."""

import pytest
import structlog
from structlog.testing import capture_logs

from shared import trouble
from shared.errors import QueueUnavailable, StoreUnavailable
from shared.trouble import Trouble

log = structlog.get_logger("tests")


def test_an_error_that_goes_on_is_told_once_and_its_end() -> None:
    told = Trouble(log, "sweep failed")
    with capture_logs() as logs:
        told.is_over()
        for port in range(1000, 1003):
            told.goes_on(StoreUnavailable(f"no answer of port {port}"))
        told.goes_on(QueueUnavailable("away"))
        told.is_over()
        told.is_over()
        told.goes_on(QueueUnavailable("away"))

    assert [(one["event"], one["log_level"]) for one in logs] == [
        ("sweep failed", "warning"),
        ("sweep failed", "warning"),
        ("works again", "info"),
        ("sweep failed", "warning"),
    ]
    assert [one.get("error") for one in logs] == ["no answer of port 1000", "away", None, "away"]
    assert logs[2]["after"] == "sweep failed"


def test_it_is_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Trouble(log, "sweep failed")
    with capture_logs() as logs:
        told.goes_on(StoreUnavailable("away"))
        monkeypatch.setattr(trouble, "SAY_SECONDS", 0.0)
        told.goes_on(StoreUnavailable("away"))

    assert len(logs) == 2
