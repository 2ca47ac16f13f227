"""Each statement of the store begins with its name: logs and views of Postgres tell it by that."""

from collections import defaultdict

from tests.shared.statements import statements


def test_each_statement_has_a_name() -> None:
    unnamed = [
        f"{one.module}.{one.constant}{one.place}" for one in statements() if one.name is None
    ]

    assert unnamed == []


def test_no_name_stands_for_two() -> None:
    """The forms of one statement share theirs, and stand in one module."""
    places = defaultdict(set)
    for one in statements():
        if one.name is not None:
            places[one.name].add(one.module)

    assert {name: found for name, found in places.items() if len(found) > 1} == {}
