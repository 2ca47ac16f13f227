"""Which choice a text means, by its words alone: what free text falls back to without a model.

It would rather find none than the wrong one.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from shared.letters import MARKS

ENOUGH = 0.6
"""The score from which on a choice counts as meant."""

MARGIN = 0.15
"""How much better than the next one it must be."""

_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*(?:'[^\W_](?:[^\W_]|[{MARKS}])*)?")
_NUMBER = re.compile(
    r"\s*+(?:(?:choice|option|number|no\.?)\s*+)?#?(\d{1,2})\s*+[.)!]?\s*+", re.IGNORECASE
)

_SMALL = frozenset(
    _WORD.findall(
        """a an and any as at be but by can could do does down for from go going have he her here
        him his how i i'd i'll i'm in into is it it's its just let let's like me my now of off on or
        our out over please she should so some than that the their them then there they this to try
        up us want was we well what which while who will with would you your"""
    )
)
"""Words too common to tell one choice from another."""

_NEGATIONS = frozenset(
    _WORD.findall(
        """not no never don't dont won't wont can't cannot without refuse nothing instead rather
        isn't shouldn't wouldn't didn't doesn't stop neither nor avoid"""
    )
)

_QUESTIONS = frozenset(("ask", "what", "where", "who", "why"))

_ENDINGS = (
    "ingly",
    "edly",
    "ing",
    "ies",
    "ied",
    "est",
    "ely",
    "ed",
    "es",
    "er",
    "ly",
    "s",
    "e",
    "y",
)


def match(words: str, choices: Sequence[str]) -> tuple[int | None, float]:
    """The index of the choice that a text means, or None, and how sure that is from 0 to 1."""
    if not choices:
        return None, 1.0
    if _NUMBER.fullmatch(words) or exact(words, choices) is not None:
        return exact(words, choices), 1.0
    scores = [_doubted(score, words, choice) for score, choice in _scores(words, choices)]
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    best = ranked[0]
    second = scores[ranked[1]] if len(ranked) > 1 else 0.0
    if scores[best] < ENOUGH or scores[best] - second < MARGIN:
        return None, round(1 - scores[best], 2)
    return best, round(scores[best], 2)


def exact(words: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text names by its number or repeats, and no other one."""
    if number := _NUMBER.fullmatch(words):
        index = int(number[1]) - 1
        return index if 0 <= index < len(choices) else None
    plain = [_plain(choice) for choice in choices]
    said = _plain(words)
    return plain.index(said) if said and plain.count(said) == 1 else None


def stem(word: str) -> str:
    """A word without its ending, the same for most forms of it."""
    word = word.removesuffix("'s")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return f"{word[:-1]}i" if word.endswith("y") else word


def _scores(words: str, choices: Sequence[str]) -> list[tuple[float, str]]:
    """How much of a choice's words the text has, and, for less, of the text's the choice.

    A word that several choices have says little about which is meant.
    """
    said = _stems(words)
    meant = [_stems(choice) for choice in choices]
    found_in = Counter(word for stems in meant for word in stems)
    weight = {word: math.log(1 + len(choices) / count) for word, count in found_in.items()}
    rare = math.log(1 + len(choices))

    def heft(stems: frozenset[str]) -> float:
        return sum(weight.get(word, rare) for word in stems)

    scores = []
    for stems, choice in zip(meant, choices, strict=True):
        shared = heft(stems & said)
        covered = shared / heft(stems) if stems else 0.0
        used = shared / heft(said) if said else 0.0
        scores.append((0.75 * covered + 0.25 * used, choice))
    return scores


def _doubted(score: float, words: str, choice: str) -> float:
    """A denial or a question about a choice is not that choice."""
    if bool(_NEGATIONS & _words(words)) != bool(_NEGATIONS & _words(choice)):
        return score / 2
    if "?" in words and "?" not in choice and not _QUESTIONS & _words(choice):
        return score / 2
    return score


def _stems(text: str) -> frozenset[str]:
    words = _words(text)
    return frozenset(stem(word) for word in (words - _SMALL) or words)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_plain(text)))


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split()).strip(" .!\"'")
