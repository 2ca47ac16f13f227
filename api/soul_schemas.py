"""What clients send and get of souls."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from api.problems import TOO_LARGE
from api.schemas import Strict
from api.texts import Text
from shared.records import MAX_SOUL, SoulSource
from shared.souls import MAX_HEADING


def _check_soul(soul: str) -> str:
    if len(soul) > MAX_SOUL:
        raise PydanticCustomError(
            TOO_LARGE, "must have at most {limit} characters", {"limit": MAX_SOUL}
        )
    return soul


SoulText = Annotated[Text, AfterValidator(_check_soul)]
SoulNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]


class SoulRequest(Strict):
    """A whole new text, of one who has read `expected_version`."""

    soul: SoulText
    expected_version: SoulNumber


class SoulEditRequest(Strict):
    """A section by its heading, and its new text; an empty text takes it out."""

    section: Annotated[Text, Field(min_length=1, max_length=MAX_HEADING)]
    text: SoulText


class SoulEditsRequest(Strict):
    """Sections to change. The others stay, so an expected version may be left out."""

    edits: Annotated[list[SoulEditRequest], Field(min_length=1, max_length=50)]
    expected_version: SoulNumber | None = None


class SoulRollbackRequest(Strict):
    """The version to go back to; without one, the newest change is undone."""

    version: SoulNumber | None = None
    expected_version: SoulNumber | None = None


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
