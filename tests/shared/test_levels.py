"""Levels, and that kombu means the same by them."""

import pytest

from shared.broker import Channel
from shared.levels import BACKGROUND, COUNTED, CROWD, FIRST, LEVELS, as_level, key_of, level_of
from shared.queue import make_celery
from shared.settings import Settings


@pytest.mark.parametrize(
    ("before", "level"),
    [
        (-1, 0),
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 2),
        (4, 3),
        (7, 3),
        (8, 4),
        (127, 7),
        (128, 8),
        (10**6, 8),
    ],
)
def test_the_more_is_before_it_the_further_back(before: int, level: int) -> None:
    assert level_of(before) == level


def test_background_is_behind_everyone() -> None:
    assert level_of(0, 1) == level_of(10**6, 1) == BACKGROUND > CROWD


def test_beyond_what_is_counted_there_is_one_level() -> None:
    assert level_of(COUNTED - 1) < level_of(COUNTED) == CROWD


@pytest.mark.parametrize("value", [None, "1", 1.0, True, -1, LEVELS, [], {}])
def test_what_is_no_level_is_the_first(value: object) -> None:
    assert as_level(value) == FIRST


def test_kombu_finds_the_same_lists(settings: Settings) -> None:
    app = make_celery(settings)
    with app.connection() as connection:
        channel = connection.default_channel
        assert isinstance(channel, Channel)
        names = [
            channel._q_for_pri("q", level)  # type: ignore[no-untyped-call]
            for level in range(LEVELS)
        ]
    assert names == [key_of("q", level) for level in range(LEVELS)]
