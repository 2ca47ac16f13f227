"""Letters as Unicode has them, where `\\w` of regular expressions knows less."""

import unicodedata

MARKS = "".join(
    mark for mark in map(chr, range(0x300, 0x10000)) if unicodedata.category(mark).startswith("M")
)
"""What is written at letters and is none to `\\w`: Hindi, Tamil and others have their vowels so,
and their words would fall apart into consonants."""
