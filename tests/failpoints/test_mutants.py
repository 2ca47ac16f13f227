"""Mutants do not rot: what each takes out is still there, once, and its tests exist."""

import pytest

from deploy.local.server import ROOT
from tests.failpoints.mutant import Mutant
from tests.failpoints.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_what_a_mutant_takes_out_is_there_once(mutant: Mutant) -> None:
    for change in mutant.changes:
        assert change.changed(ROOT) != (ROOT / change.file).read_text(encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutants_tests_are_there(mutant: Mutant) -> None:
    for tests in mutant.tests:
        assert (ROOT / tests.split()[0]).is_file()
