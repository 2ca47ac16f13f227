"""Ranking turns by their words: BM25 over stems, the plainest recall that is worth measuring."""

import math
import re
from collections import Counter, defaultdict

_WORD = re.compile(r"[^\W_]+")
_ENDINGS = ("ingly", "edly", "ing", "ies", "ied", "ed", "es", "ly", "s", "e", "y")
_COMMON = frozenset(
    """a about all am an and any are as at be been but by can could did do does for from get had
    has have he her him his how i if in is it its just like me my no not of on or our out she so
    some than that the their them then there they this to up us was we were what when where which
    who why will with would you your""".split()
)

K1 = 1.2
B = 0.75


def stems(text: str) -> list[str]:
    """The words of a text that tell something, without their endings."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _COMMON)
    return [_stem(word) for word in words]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


class WordIndex:
    """Texts by their keys, which can be added to while it is asked."""

    def __init__(self) -> None:
        self._where: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._lengths: dict[str, int] = {}
        self._total = 0

    def add(self, key: str, text: str) -> None:
        """Add a text."""
        words = Counter(stems(text))
        self._lengths[key] = sum(words.values())
        self._total += self._lengths[key]
        for word, count in words.items():
            self._where[word].append((key, count))

    def best(self, query: str, most: int) -> list[str]:
        """The keys of the texts that fit a query best, at most so many."""
        scores: dict[str, float] = defaultdict(float)
        average = self._total / max(1, len(self._lengths))
        for word in set(stems(query)):
            found = self._where.get(word, ())
            rarity = math.log(1 + (len(self._lengths) - len(found) + 0.5) / (len(found) + 0.5))
            for key, count in found:
                weight = 1 - B + B * self._lengths[key] / average
                scores[key] += rarity * count * (K1 + 1) / (count + K1 * weight)
        return sorted(scores, key=lambda key: -scores[key])[:most]
