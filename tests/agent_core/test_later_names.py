"""Packages that gather the names of their modules import these when they're asked for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

from agent_core.later_names import LaterNames
from tests.agent_core.test_models import import_in_a_process

Import: TypeAlias = Callable[[dict[str, str]], ModuleType]
"""Imports the package `gathering` that these files are."""


@pytest.fixture
def import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    def import_it(files: dict[str, str]) -> ModuleType:
        for name, text in files.items():
            file = tmp_path / "gathering" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return importlib.import_module("gathering")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [LaterNames("gathering"), *sys.meta_path])
    yield import_it
    for name in [name for name in sys.modules if name.partition(".")[0] == "gathering"]:
        del sys.modules[name]


def imported() -> set[str]:
    return {name for name in sys.modules if name.startswith("gathering.")}


GATHERING = (
    "# names\n"
    "from __future__ import annotations\n"
    "from .fruit import Apple as Apple, Pear\n"
    "from .inner import Nut as Hazel\n"
    "from .late import _Hidden\n"
    '__all__ = ["Apple"]\n'
)
FILES = {
    "__init__.py": GATHERING,
    "fruit.py": "class Apple: ...\nclass Pear: ...\n",
    "inner/__init__.py": "from .nuts import Nut\n",
    "inner/nuts.py": "from gathering import Pear\nclass Nut(Pear): ...\n",
    "late.py": "class _Hidden: ...\n",
}


def test_a_module_is_imported_when_its_name_is_asked_for(import_it: Import) -> None:
    package = import_it(FILES)
    assert imported() == set()

    apple = package.Apple

    assert imported() == {"gathering.fruit"}
    assert apple is package.Apple is sys.modules["gathering.fruit"].Apple
    assert apple.__module__ == "gathering.fruit"
    assert package.Hazel.__name__ == "Nut"
    assert imported() == {"gathering.fruit", "gathering.inner", "gathering.inner.nuts"}


def test_all_its_names_are_there(import_it: Import) -> None:
    package = import_it(FILES)
    found: dict[str, object] = {}

    assert {"Apple", "Pear", "Hazel", "_Hidden"} <= set(dir(package))
    exec("from gathering import *", found)
    assert found.keys() >= {"Apple", "Pear", "Hazel"}
    assert "_Hidden" not in found


def test_a_module_can_be_imported_itself(import_it: Import) -> None:
    import_it(FILES)

    late = importlib.import_module("gathering.late")

    assert late is sys.modules["gathering"].late
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("gathering.absent")


def test_a_name_that_it_does_not_have(import_it: Import) -> None:
    package = import_it(FILES)

    with pytest.raises(AttributeError, match="'gathering' has no attribute 'Plum'"):
        _ = package.Plum
    assert not hasattr(package, "late")


@pytest.mark.parametrize(
    "more",
    ["NUMBER = 1\n", "from .late import *\n", "from json import loads\n", "if Apple: ...\n"],
)
def test_a_package_that_does_anything_else_is_imported_as_usual(
    import_it: Import, more: str
) -> None:
    package = import_it(FILES | {"__init__.py": GATHERING + more})

    assert imported() >= {"gathering.fruit", "gathering.late"}
    assert package.Apple.__name__ == "Apple"


NAMES = """
import importlib, pkgutil, sys
{before}
packages = ["openai.resources", "openai.types"]
for package in packages:
    module = importlib.import_module(package)
    inner = pkgutil.iter_modules(module.__path__, package + ".")
    packages += [one.name for one in inner if one.ispkg]
for package in packages:
    module = importlib.import_module(package)
    for name in sorted(dir(module)):
        value = getattr(module, name)
        if hasattr(value, "__qualname__") and not name.startswith("__"):
            print(package, name, value.__module__, value.__qualname__)
"""
LATER = """
from agent_core.later_names import LaterNames
sys.meta_path.insert(0, LaterNames("openai.resources", "openai.types"))
"""


def test_the_package_of_openai_has_the_same_names() -> None:
    as_usual = import_in_a_process(NAMES.format(before=""))
    later = import_in_a_process(NAMES.format(before=LATER))

    assert later == as_usual
    assert later.count("\n") > 1_000


def test_litellm_imports_a_part_of_it() -> None:
    said = import_in_a_process(
        "import sys\n"
        "from agent_core.litellm_package import rehearse\n"
        "rehearse()\n"
        "print(sum(name.startswith('openai.') for name in sys.modules))\n"
        "import openai\n"
        "print(openai.types.Batch.__name__, openai.AsyncOpenAI(api_key='none').beta.assistants)"
    )

    count, used = said.splitlines()
    assert int(count) < 600
    assert used.startswith("Batch <openai.resources.beta.assistants.AsyncAssistants object")
