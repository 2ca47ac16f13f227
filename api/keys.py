"""`python -m api.keys`: make, list and revoke API keys."""

import argparse
import sys
from uuid import UUID

from api.identity import check_user_id
from shared.command import complain, run_on_database, say
from shared.store import api_keys
from shared.store.database import Database


def main(arguments: list[str] | None = None) -> int:
    """Run the command; one clear line on failure."""
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key; it is shown once")
    create.add_argument("user", help="id of the user that it acts for")
    create.add_argument("--label", default="", help="what it is for")
    listing = commands.add_parser("list", help="show the keys of a user, or of all")
    listing.add_argument("user", nargs="?", help="id of a user")
    revoke = commands.add_parser("revoke", help="take a key out of use, within ten seconds")
    revoke.add_argument("user", help="id of its user")
    revoke.add_argument("id", type=UUID, help="id of the key, from create or list")
    options = parser.parse_args(arguments)
    return run_on_database(lambda _, db: _run(db, options))


async def _run(db: Database, options: argparse.Namespace) -> int:
    if options.user is not None:
        check_user_id(options.user)
    match options.command:
        case "create":
            key_id, key = await api_keys.create(db, options.user, options.label)
            say(f"id   {key_id}\nkey  {key}")
        case "list":
            for one in await api_keys.page(db, options.user):
                state = "revoked" if one.revoked_at else "active"
                say(f"{one.id}  {state:8}{one.created_at:%Y-%m-%d}  {one.user_id}  {one.label}")
        case _:
            if not await api_keys.revoke(db, options.user, options.id):
                return complain("the user has no such active key")
            say("revoked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
