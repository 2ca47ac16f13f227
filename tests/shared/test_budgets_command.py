"""`python -m shared.budgets`, as an operator uses it."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from uuid import uuid4

import pytest

from shared.allowance import NO_RULES, Budget
from shared.budgets import main
from shared.encoding import loads
from shared.settings import get_settings
from shared.store import api_keys, budgets
from shared.store.database import Database


@pytest.fixture(autouse=True)
def _fresh_settings(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command reads the settings of the process, which are this test's."""
    monkeypatch.setenv("FIRESIDE_BUDGET_PER_USER", "20/month")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


async def command(*arguments: object) -> int:
    return await asyncio.to_thread(main, [str(one) for one in arguments])


async def test_set_show_list_and_clear(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    key_id, _ = await api_keys.create(db, "ann")

    assert await command("set", "ann", "5/day") == 0
    assert await command("set", "ann", "unlimited", "--key", key_id) == 0
    assert await budgets.left(db, "ann", NO_RULES) == 5
    assert await command("list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "ann  user  5 day",
        f"ann  key {key_id}  unlimited",
    ]
    assert await command("list", "--json") == 0
    first = loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"user": "ann", "key": None, "limit_usd": 5.0, "period": "day"}
    assert await command("show", "ann", "--key", key_id, "--json") == 0
    shown = loads(capsys.readouterr().out)
    assert (shown["limit_usd"], shown["left_usd"], shown["period"]) == (5.0, 5.0, "day")
    assert await command("clear", "ann") == 0
    assert await command("show", "ann") == 0
    line = capsys.readouterr().out
    assert line.startswith("user  20 month  spent 0  reserved 0  left 20  renews ")
    assert (await budgets.page(db))[0].budget is None
    assert await budgets.left(db, "ann", NO_RULES, key_id=str(key_id)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "ann", "5/week"], "must be US dollars, as 100, 20/month or 0.5/day"),
        (["set", "ann", "5", "--key", str(uuid4())], "the user has no such key"),
        (["clear", "ann"], "no budget was set there"),
    ],
)
async def test_what_it_refuses(
    db: Database, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    await budgets.put(db, "bob", Budget(Decimal(1)))

    assert await command(*arguments) == 1

    assert capsys.readouterr().err == f"fireside: {message}\n"
    assert len(await budgets.page(db)) == 1
