"""The modules that agents come from, and what is said of one that is not found."""

import os
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import load_settings
from worker.agents import load_agents


def refused(monkeypatch: pytest.MonkeyPatch, module: str) -> str:
    monkeypatch.setenv("FIRESIDE_AGENT_MODULES", module)
    with pytest.raises(SettingsError) as caught:
        load_agents(load_settings())
    return str(caught.value)


def test_a_module_that_is_not_found_is_told_with_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/my-agents")
    said = "FIRESIDE_AGENT_MODULES: my_parrot: No module named 'my_parrot'"

    where = f"in {os.getcwd()} or in PYTHONPATH"
    assert refused(monkeypatch, "my_parrot") == f"{said} {where} (/my-agents)"
    monkeypatch.delenv("PYTHONPATH")
    assert refused(monkeypatch, "my_parrot") == f"{said} {where} (not set)"


def test_what_a_module_itself_does_not_find_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needy_parrot.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert refused(monkeypatch, "needy_parrot") == (
        "FIRESIDE_AGENT_MODULES: needy_parrot: No module named 'no_such_package'"
    )
