"""What clients send and get of souls."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from api.schemas import SoulText, Strict
from api.texts import CHECKED
from shared.records import SoulSource
from shared.souls import MAX_HEADING

SoulNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""Of a version, as it stands in a path."""

_Version = Annotated[SoulNumber, Field(strict=True)]


class SoulRequest(Strict):
    """A whole new text, of one who has read `expected_version`."""

    soul: SoulText
    expected_version: _Version


class SoulEditRequest(Strict):
    """A section by its heading, and its new text; an empty text takes it out."""

    section: Annotated[str, Field(min_length=1, max_length=MAX_HEADING), CHECKED]
    text: SoulText


class SoulEditsRequest(Strict):
    """Sections to change. The others stay, so an expected version may be left out."""

    edits: Annotated[list[SoulEditRequest], Field(min_length=1, max_length=50)]
    expected_version: _Version | None = None


class SoulRollbackRequest(Strict):
    """The version to go back to; without one, the newest change is undone."""

    version: _Version | None = None
    expected_version: _Version | None = None


class SoulBody(BaseModel):
    """One version of a soul.

    `source` is who wrote it: the `user`, the `agent` in the task `task_id`, or a rollback
    (`restored`) to the version `restored`.
    """

    version: int
    soul: str
    source: SoulSource
    task_id: UUID | None
    restored: int | None
    created_at: datetime


class SoulVersionsBody(BaseModel):
    """A page of versions, newest first; `next` is the `before` of the next page."""

    versions: list[SoulBody]
    next: int | None
