"""What a provider allows of one model with one key, as an operator writes it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shared.errors import SettingsError

_FORM = re.compile(r"(?P<model>[^\s=]+/[^\s=]+)=(?P<numbers>[^=]+)")


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Requests and tokens per minute, and calls under way at once; None is without limit."""

    requests: int | None = None
    tokens: int | None = None
    calls: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return (self.requests, self.tokens, self.calls) != (None, None, None)


def read_limits(entries: Iterable[str]) -> dict[str, ModelLimits]:
    """Limits by model from entries like `openai/gpt-5-mini=500/200000/20`.

    The numbers are requests, tokens and calls at once; later ones may be left out, `-` is none.

    Raises:
        SettingsError: an entry has another form, or a model is named twice.
    """
    limits: dict[str, ModelLimits] = {}
    for entry in entries:
        match = _FORM.fullmatch(entry)
        numbers = [_number(word) for word in match["numbers"].split("/")] if match else []
        if match is None or len(numbers) > 3:
            raise SettingsError("must be provider/model=requests/tokens/calls for each model")
        if match["model"] in limits:
            raise SettingsError("a model is named twice")
        limits[match["model"]] = ModelLimits(*numbers)
    return limits


def _number(word: str) -> int | None:
    if word == "-":
        return None
    if not (word.isascii() and word.isdecimal() and int(word[:12]) > 0 and len(word) <= 12):
        raise SettingsError("a limit must be a whole number above 0, or - for none")
    return int(word)
