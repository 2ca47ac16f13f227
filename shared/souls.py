"""Souls as texts: an opening that says who a character is, then sections under `## ` headings.

A change names a section and leaves all others as they are, so that what an agent writes about one
thing does not undo what its user wrote about another.
"""

import re
from collections.abc import Iterator, Sequence

from shared.errors import InvalidRequest, SoulTooLarge
from shared.records import MAX_SOUL, SoulEdit

MAX_HEADING = 80
"""Characters of a section's heading."""

_HEADING = re.compile(r"^##[ \t]+(?=\S)", re.MULTILINE)
_BEFORE_WORDS = "# \t\r\n"
_ANY_HEADING = re.compile(r"^[^\S\n]*#{1,2}(\s|$)", re.MULTILINE)


def opening(soul: str) -> str:
    """What stands before the first section."""
    # Not without its indentation: a line could become a heading by that.
    return next(_parts(soul)).rstrip().lstrip("\n")


def merged(soul: str, edits: Sequence[SoulEdit]) -> str:
    """The soul with these sections changed; a new one goes to the end.

    Raises:
        InvalidRequest: a heading is empty, longer than a line or than MAX_HEADING, or a text
            has headings of its own.
        SoulTooLarge: it would have more than MAX_SOUL characters.
    """
    for edit in edits:
        soul = _with(soul, edit)
    check_size(soul)
    return soul


def check_size(soul: str) -> None:
    """Raise SoulTooLarge where a soul has more than MAX_SOUL characters."""
    if len(soul) > MAX_SOUL:
        raise SoulTooLarge(f"a soul has at most {MAX_SOUL} characters, not {len(soul)}")


def _with(soul: str, edit: SoulEdit) -> str:
    heading, text = _checked(edit)
    first = opening(soul)
    sections = [part.strip() for part in _parts(soul)][1:]
    new = f"## {heading}\n{text}" if text else ""
    names = [_name(section.partition("\n")[0]) for section in sections]
    if _name(heading) in names:
        sections[names.index(_name(heading))] = new
    else:
        sections.append(new)
    return "\n\n".join(part for part in [first, *sections] if part)


def _checked(edit: SoulEdit) -> tuple[str, str]:
    heading = edit.section.lstrip(_BEFORE_WORDS).rstrip()
    if not heading or len(heading) > MAX_HEADING or not heading.isprintable():
        raise InvalidRequest(f"a section's heading is a line of 1 to {MAX_HEADING} characters")
    if _ANY_HEADING.search(edit.text):
        raise InvalidRequest("the text of a section can't have headings of its own")
    return heading, edit.text.strip()


def _parts(soul: str) -> Iterator[str]:
    """The opening, which may be empty, then each section from its heading on."""
    starts = [match.start() for match in _HEADING.finditer(soul)]
    for begin, end in zip([0, *starts], [*starts, len(soul)], strict=True):
        yield soul[begin:end]


def _name(heading: str) -> str:
    return " ".join(heading.lstrip(_BEFORE_WORDS).split()).casefold()
