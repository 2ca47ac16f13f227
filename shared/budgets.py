"""`python -m shared.budgets`: say what users and API keys may spend, and see what is left."""

import argparse
import sys
from uuid import UUID

from shared.allowance import read_budget
from shared.command import run_on_database, say
from shared.encoding import dumps_text
from shared.errors import InvalidRequest
from shared.settings import Settings
from shared.store import api_keys, budgets
from shared.store.budgets import Balance, SetBudget
from shared.store.database import Database


def main(arguments: list[str] | None = None) -> int:
    """Run the command; one clear line on failure."""
    parser = argparse.ArgumentParser(prog="python -m shared.budgets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    put = commands.add_parser("set", help="give a user, or one of their keys, a budget")
    put.add_argument("user", help="id of the user")
    put.add_argument("budget", help="billed dollars, as 100, 20/month or 0.5/day; or `unlimited`")
    clear = commands.add_parser("clear", help="have the settings hold for them again")
    clear.add_argument("user", help="id of the user")
    show = commands.add_parser("show", help="show what a user has spent and has left")
    show.add_argument("user", help="id of the user")
    for one in (put, clear, show):
        one.add_argument("--key", type=UUID, help="id of an API key of theirs")
    listing = commands.add_parser("list", help="show the budgets that were set")
    for one in (show, listing):
        one.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    return run_on_database(lambda settings, db: _run(settings, db, options))


async def _run(settings: Settings, db: Database, options: argparse.Namespace) -> None:
    if options.command == "list":
        for one in await budgets.page(db):
            say(_set_json(one) if options.json else _set_line(one))
        return
    key_id = await _key_id(db, options.user, options.key)
    match options.command:
        case "set":
            chosen = None if options.budget == "unlimited" else read_budget(options.budget)
            await budgets.put(db, options.user, chosen, key_id=key_id)
        case "clear":
            if not await budgets.clear(db, options.user, key_id=key_id):
                raise InvalidRequest("no budget was set there")
        case _:
            found = await budgets.balances(db, options.user, settings.budgets, key_id=key_id)
            for balance in found:
                say(_json(balance) if options.json else _line(balance))


async def _key_id(db: Database, user_id: str, key: UUID | None) -> str:
    """The key's id as budgets know it; raises InvalidRequest for a key of somebody else."""
    if key is None:
        return ""
    if key not in [one.id for one in await api_keys.page(db, user_id)]:
        raise InvalidRequest("the user has no such key")
    return str(key)


def _whose(key_id: str) -> str:
    return f"key {key_id}" if key_id else "user"


def _line(one: Balance) -> str:
    renews = "" if one.renews_at is None else f"  renews {one.renews_at:%Y-%m-%d %H:%M} UTC"
    return (
        f"{_whose(one.key_id)}  {one.usd:f} {one.period}  spent {one.spent:f}  "
        f"reserved {one.reserved:f}  left {one.left:f}{renews}"
    )


def _json(one: Balance) -> str:
    return dumps_text(
        {
            "key": one.key_id or None,
            "period": one.period,
            "limit_usd": float(one.usd),
            "spent_usd": float(one.spent),
            "reserved_usd": float(one.reserved),
            "left_usd": float(one.left),
            "renews_at": one.renews_at,
        }
    )


def _set_line(one: SetBudget) -> str:
    budget = one.budget
    shown = "unlimited" if budget is None else f"{budget.usd:f} {budget.period}"
    return f"{one.user_id}  {_whose(one.key_id)}  {shown}"


def _set_json(one: SetBudget) -> str:
    budget = one.budget
    return dumps_text(
        {
            "user": one.user_id,
            "key": one.key_id or None,
            "limit_usd": None if budget is None else float(budget.usd),
            "period": None if budget is None else budget.period,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
