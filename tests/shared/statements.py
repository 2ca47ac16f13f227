"""The statements of the store, as its modules hold them."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import TextClause

import shared.store

_NAME = re.compile(r"\s*/\* (.*?) \*/")


@dataclass(frozen=True)
class Statement:
    """A statement in a constant of a module, or at a place in one that holds several.

    `name` is what it calls itself in the comment that it begins with, if it does.
    """

    module: str
    constant: str
    place: str
    name: str | None
    text: str


def statements() -> Iterator[Statement]:
    """All statements that stand in constants."""
    for module in pkgutil.iter_modules(shared.store.__path__):
        members = vars(importlib.import_module(f"shared.store.{module.name}"))
        for constant, member in members.items():
            for place, one in _texts(member):
                named = _NAME.match(one.text)
                name = named[1] if named else None
                yield Statement(module.name, constant, place, name, one.text)


def _texts(member: object) -> Iterator[tuple[str, TextClause]]:
    """The statements that a constant is or holds, and what tells each from the others."""
    if isinstance(member, TextClause):
        yield "", member
    elif isinstance(member, list | tuple | dict):
        found = member.items() if isinstance(member, dict) else enumerate(member)
        for key, one in found:
            if isinstance(one, TextClause):
                yield f"[{key}]", one
