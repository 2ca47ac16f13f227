"""What goes on going wrong is told at once, then now and then, and when it is over."""

import asyncio
from urllib.parse import urlsplit

import pytest
import structlog
from redis.asyncio import Redis
from structlog.testing import capture_logs

from shared import trouble
from shared.ending import end_all
from shared.errors import QueueUnavailable, StoreUnavailable
from shared.follow import Follower
from shared.hearing import hear_for_ever
from shared.trouble import Trouble
from tests.waiting import until

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


def test_what_is_caught_goes_no_further_and_is_no_programming_error() -> None:
    told = Trouble(log, "sweep failed")
    with capture_logs() as logs:
        for _ in range(2):
            with told.catch():
                raise StoreUnavailable("away")
        with pytest.raises(KeyError), told.catch():
            raise KeyError("no error of ours")
        with told.catch():
            pass

    assert [one["event"] for one in logs] == ["sweep failed", "works again"]


def test_it_is_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Trouble(log, "sweep failed")
    with capture_logs() as logs:
        told.goes_on(StoreUnavailable("away"))
        monkeypatch.setattr(trouble, "SAY_SECONDS", 0.0)
        told.goes_on(StoreUnavailable("away"))

    assert len(logs) == 2


async def test_a_wrong_password_of_redis_is_told_by_its_name_and_in_few_lines(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.hearing._AGAIN_SECONDS", 0.01)
    parts = urlsplit(redis_url)
    redis = Redis.from_url(f"redis://:wrong@{parts.hostname}:{parts.port}/0")
    follower = Follower(redis, ping_seconds=5)
    with capture_logs() as logs:
        hearing = asyncio.create_task(hear_for_ever(redis, {}, unheard="nothing is heard"))
        await follower.start()
        await until(lambda: len({one["event"] for one in logs}) == 2)
        await asyncio.sleep(0.3)  # each tries several times
        await end_all([hearing])
        await follower.stop()
    await redis.aclose()

    assert sorted(one["event"] for one in logs) == ["nothing is heard", "subscription lost"]
    assert {one["error"].split(":")[0] for one in logs} == {"Redis is not available"}
