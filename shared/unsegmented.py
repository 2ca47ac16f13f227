"""Words where no blanks part them: what full text search is given in their place.

Postgres knows words by their blanks. To it `我的狗叫Rex` is one word, which nobody asks for. So it
is shown only what is written with blanks (`spelled`), and of the rest neighbouring signs stand for
words: all pairs, and of Chinese and Korean each sign, which may well be a word. A cue asks by its
pairs; by single signs, of which most texts have some, only where they stand alone or are few.
"""

import re

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_KANA = "\u3040-\u30ff\u31f0-\u31ff"
_THAI_TO_KHMER = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_BARE = f"{_HAN}{_KANA}{_THAI_TO_KHMER}"

# Koreans put blanks, but not between a noun and its particle.
_HANGUL = "\uac00-\ud7a3"

_RUN = re.compile(f"[{_BARE}]+|[{_HANGUL}]+")
_SYLLABLES = re.compile(f"[{_HAN}]+|[{_HANGUL}]+")
"""Whole words have often one such sign; a Japanese one most often where kana stand about it."""

_WITH_PARTICLE = re.compile(f"[{_HANGUL}][은는이가을를도의에와과로만]")
"""A Korean word of one sign as it stands in sentences."""

_APART = re.compile(f"[{_BARE}]+|([{_HANGUL}]+)")

# Latin letters and digits as wide as a Chinese sign.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}

FEW_SIGNS = 12
"""A cue with so many different signs is short enough to ask by each of them."""


def spelled(text: str) -> str:
    """The words that are written with blanks, apart from others: `我在2019年` gives ` 2019 `.

    Korean words are kept, apart from Latin ones. Other texts are given back as they are.
    """
    if text.isascii():
        return text
    return _APART.sub(r" \1 ", text.translate(_NARROW))


def pairs(text: str) -> list[str]:
    """Each two neighbouring signs of the parts without blanks, and signs that stand alone."""
    found = (run[at : at + 2] for run in _runs(text) for at in range(max(1, len(run) - 1)))
    return list(dict.fromkeys(found))


def index_signs(text: str) -> list[str]:
    """By what the parts without blanks are found: pairs and signs, once each."""
    return list(dict.fromkeys([*pairs(text), *_signs(text)]))


def asked_signs(text: str, few: int = 0) -> list[str]:
    """By what a cue asks for them: pairs, signs that stand alone, and all if there are `few`."""
    signs = list(dict.fromkeys(_signs(text)))
    if len(signs) > few:
        runs = _SYLLABLES.findall(text)
        signs = [run[0] for run in runs if len(run) == 1 or _WITH_PARTICLE.fullmatch(run)]
    return list(dict.fromkeys([*pairs(text), *signs]))


def _runs(text: str) -> list[str]:
    return [] if text.isascii() else _RUN.findall(text)


def _signs(text: str) -> str:
    return "" if text.isascii() else "".join(_SYLLABLES.findall(text))
