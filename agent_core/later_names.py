"""Packages that gather the names of their modules, without importing all of these at once."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType


class LaterNames:
    """A finder for `sys.meta_path`: these packages, and those in them, import a module when one of
    the names that they gather from it is asked for.

    Only packages that do nothing else, `from .module import Name`, line by line; any other is
    imported as usual. Whoever asks for a name gets what he would have got.

    Args:
        packages: with dots, as `openai.types`.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as usual; None for one that is not in these packages."""
        if not f"{name}.".startswith(tuple(f"{package}." for package in self._packages)):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.submodule_search_locations is not None:
            loader = spec.loader
            if isinstance(loader, SourceFileLoader):
                spec.loader = _Loader(loader.name, loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        gathered = _gathered(self.get_source(self.name) or "")
        if gathered is None:
            super().exec_module(module)
            return

        def later(name: str) -> object:
            if name not in gathered:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            source, inner = gathered[name]
            found = getattr(importlib.import_module(f".{source}", module.__name__), inner)
            setattr(module, name, found)
            return found

        vars(module).update(
            __getattr__=later,
            __dir__=lambda: sorted({*vars(module), *gathered}),
            __all__=[name for name in gathered if not name.startswith("_")],
        )


def _gathered(source: str) -> dict[str, tuple[str, str]] | None:
    """The names of a package: each one's module, and what it is called there.

    None if the package does anything else.
    """
    gathered: dict[str, tuple[str, str]] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.ImportFrom(module="__future__"):
                pass
            case ast.Assign(targets=[ast.Name("__all__")]):
                pass  # the same names again
            case ast.ImportFrom(module=str(module), names=names, level=1):
                gathered |= {name.asname or name.name: (module, name.name) for name in names}
            case _:
                return None
    return None if "*" in gathered else gathered
