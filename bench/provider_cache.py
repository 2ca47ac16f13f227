"""What a provider would charge for the requests of one user: tokens, and what its cache gives."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agent_core import Model, Usage
from agent_core.prompt_cache import prompt_cache_of
from agent_core.tokens import count_tokens

FRAME_TOKENS = 4  # role and separators of a message


@dataclass(frozen=True, slots=True)
class Request:
    """The texts of a request in their order, the system prompt first, and the answer's."""

    texts: Sequence[str]
    answer: str


class Meter:
    """Counts the tokens of one user's requests, which come one after the other.

    Args:
        warm: the request before is still in the provider's cache.
    """

    def __init__(self, model: Model, *, warm: bool) -> None:
        self._cache = prompt_cache_of(model)
        self._warm = warm
        self._before: Sequence[str] = ()

    def usage(self, request: Request) -> Usage:
        """What a request and its answer use."""
        texts = request.texts
        total = sum(map(tokens_of, texts))
        read = self._read(texts) if self._warm else 0
        self._before = list(texts)
        write = total - read if self._cache.marked and total >= self._cache.minimum else 0
        return Usage(
            input=total - read - write,
            output=tokens_of(request.answer),
            cache_read=read,
            cache_write=write,
            total_tokens=total,
        )

    def _read(self, texts: Sequence[str]) -> int:
        same = 0
        for one, before in zip(texts, self._before, strict=False):
            if one is not before and one != before:
                break
            same += 1
        common = sum(map(tokens_of, texts[:same]))
        if self._cache.marked:
            return self._cache.kept(self._marked(common, same))
        if same < min(len(texts), len(self._before)):
            common += len_of_prefix(texts[same], self._before[same])
        return self._cache.kept(common)

    def _marked(self, common: int, same: int) -> int:
        """The request before was marked after its system prompt, before its end, and at its end."""
        if same == len(self._before):
            return common
        if same == len(self._before) - 1:
            return common
        return tokens_of(self._before[0]) if same else 0


def len_of_prefix(one: str, other: str) -> int:
    """The tokens that two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    return tokens_of(one[:at]) - FRAME_TOKENS if at else 0


@cache
def tokens_of(text: str) -> int:
    """The tokens of a message."""
    return _counter()(text) + FRAME_TOKENS


@cache
def _counter() -> Callable[[str], int]:
    """The tokenizer of newer models where it is at hand, else an estimate."""
    spec = importlib.util.find_spec("litellm")
    folders = spec.submodule_search_locations if spec else None
    if importlib.util.find_spec("tiktoken") is None or not folders:
        return count_tokens
    # Its tables would be fetched from the network; litellm brings them along.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(folders[0], "litellm_core_utils", "tokenizers"))
    encoding: Any = importlib.import_module("tiktoken").get_encoding("o200k_base")
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def counted_by() -> str:
    """How tokens are counted here."""
    return "estimate" if _counter() is count_tokens else "o200k_base"
