"""The stories that are offered: found in folders, named, hashed, and held ready to be played.

A story is a folder with `story.ink` and the files that it includes, or a single `NAME.ink`.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.ink.engine import InkEngine, metadata_of
from worker.ink.errors import (
    Problem,
    StoryInvalidError,
    StoryNameTakenError,
    StoryNotFoundError,
)
from worker.ink.machine import Budget

MAIN: Final = "story.ink"

_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")
_LARGEST_FILE: Final = 4 << 20  # bytes
_MOST_FILES: Final = 500


@dataclass(frozen=True)
class StorySource:
    """A story's texts by name; `hash` is the SHA-256 of all of them and thus names this version."""

    name: str
    path: Path
    main: str
    files: Mapping[str, str]
    hash: str


@dataclass(frozen=True)
class StoryCard:
    """What a reader is told of a story before it begins, from its global tags."""

    title: str
    author: str
    description: str
    tags: tuple[str, ...]


class StoryLibrary:
    """The stories of some folders, and at most `held` engines of them, the last used ones.

    A running session keeps the hash that it began with. Its compiled story may be years older than
    the folder's, so the caller keeps compiled stories and hands them in by hash.
    """

    def __init__(
        self, folders: Sequence[Path], *, held: int = 100, budget: Budget | None = None
    ) -> None:
        self._folders = tuple(folders)
        self._held = held
        self._budget = budget
        self._lock = threading.Lock()
        self._engines: OrderedDict[str, InkEngine] = OrderedDict()

    def sources(self) -> Mapping[str, StorySource]:
        """Read all stories of the folders now, by name; for a thread.

        Raises StoryNameTakenError, StoryInvalidError, and StoryNotFoundError for a missing folder.
        """
        found: dict[str, StorySource] = {}
        for path in self._paths():
            source = read_story(path)
            if _NAME.fullmatch(source.name) is None:
                raise _invalid("a story's name is of a-z, 0-9 and - only", path.name)
            if other := found.get(source.name):
                raise StoryNameTakenError(
                    f"two stories are named {source.name!r}: {other.path} and {source.path}"
                )
            found[source.name] = source
        return found

    def held(self, story_hash: str) -> InkEngine | None:
        """The engine of that version if it is ready."""
        with self._lock:
            engine = self._engines.get(story_hash)
            if engine is not None:
                self._engines.move_to_end(story_hash)
            return engine

    def engine(self, story_hash: str, load: Callable[[str], str | None]) -> InkEngine:
        """The engine of that version; `load` gives its compiled JSON by hash when it is not ready.

        Raises StoryNotFoundError when `load` gives None, or StoryInvalidError. Takes about 10 ms
        for a large story that is not ready.
        """
        engine = self.held(story_hash)
        if engine is not None:
            return engine
        compiled = load(story_hash)
        if compiled is None:
            raise StoryNotFoundError(f"no compiled story has the hash {story_hash}")
        engine = InkEngine(compiled, story_hash=story_hash, budget=self._budget)
        with self._lock:
            # Another thread may have been faster: sessions of one story share its engine.
            engine = self._engines.setdefault(story_hash, engine)
            self._engines.move_to_end(story_hash)
            while len(self._engines) > self._held:
                self._engines.popitem(last=False)
        return engine

    def _paths(self) -> Iterator[Path]:
        for folder in self._folders:
            if not folder.is_dir():
                raise StoryNotFoundError(f"there is no folder of stories at {folder}")
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    continue
                if (path / MAIN).is_file() or (path.suffix == ".ink" and path.is_file()):
                    yield path


def read_story(path: Path) -> StorySource:
    """Read a story's folder, its `story.ink`, or a single file.

    Raises StoryNotFoundError, or StoryInvalidError for a file that is not text or far too large.
    """
    folder = path.parent if path.name == MAIN else path
    if (folder / MAIN).is_file():
        files = _texts(folder, folder.rglob("*.ink"))
        return StorySource(folder.resolve().name, folder, MAIN, files, hash_of(files))
    if not path.is_file():
        raise StoryNotFoundError(f"there is no story at {path}")
    files = _texts(path.parent, [path])
    return StorySource(path.stem, path, path.name, files, hash_of(files))


def hash_of(files: Mapping[str, str]) -> str:
    """The SHA-256 of a story's texts and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, text in sorted(files.items()):
        for part in (name.encode(), text.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def card_of(name: str, tags: Iterable[str]) -> StoryCard:
    """What the global tags `title`, `author` and `description` say; without a title, the name."""
    tags = tuple(tags)
    said = metadata_of(tags)
    words = name.replace("-", " ")
    title = said.get("title") or words[:1].upper() + words[1:]
    return StoryCard(title, said.get("author", ""), said.get("description", ""), tags)


def _texts(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    root = folder.resolve()
    texts: dict[str, str] = {}
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        # A link could show the author a file of the server's.
        if not path.resolve().is_relative_to(root):
            raise _invalid("a file outside of the story's folder", name)
        if path.is_file():
            texts[name] = _text(path, name)
        if len(texts) > _MOST_FILES:
            raise _invalid(f"more than {_MOST_FILES} files", folder.name)
    return texts


def _text(path: Path, name: str) -> str:
    if path.stat().st_size > _LARGEST_FILE:
        raise _invalid(f"a file of more than {_LARGEST_FILE >> 20} MiB", name)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _invalid("not UTF-8 text", name, line) from None


def _invalid(message: str, file: str, line: int | None = None) -> StoryInvalidError:
    problem = Problem("error", message, file, line)
    return StoryInvalidError(str(problem), (problem,))
