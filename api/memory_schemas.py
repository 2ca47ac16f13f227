"""What clients send and get of memories."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, model_validator

from api.schemas import Strict
from api.texts import CHECKED
from shared.memories import DEFAULT_LANGUAGE, PASSAGE_CHARACTERS, MemoryKind, language_of
from shared.store.memory_pages import QUERY_CHARACTERS


def _not_blank(text: str) -> str:
    squeezed = " ".join(text.split())
    if not squeezed:
        raise ValueError("must not be empty")
    return squeezed


Query = Annotated[str, Field(max_length=QUERY_CHARACTERS), CHECKED, AfterValidator(_not_blank)]
MemoryText = Annotated[
    str, Field(max_length=PASSAGE_CHARACTERS), CHECKED, AfterValidator(_not_blank)
]


def _language(code: str) -> str:
    return language_of({"language": code})


class MemorySearch(Strict):
    """Words to look for, and where.

    In a body: what people look for is no business of access logs. `language` is as `de`.
    """

    text: Query
    character_id: UUID | None = None
    session_id: UUID | None = None
    kinds: Annotated[list[MemoryKind], Field(min_length=1, max_length=6)] | None = None
    closed: bool = False
    language: Annotated[str, Field(max_length=35), CHECKED, AfterValidator(_language)] = (
        DEFAULT_LANGUAGE
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=100)] = 20


class MemoryPatch(Strict):
    """What to change of a memory; `valid` false: it is not true any more."""

    text: MemoryText | None = None
    importance: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None = None
    valid: bool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.text is None and self.importance is None and self.valid is None:
            raise ValueError("nothing is to be changed")
        return self


class MemoryBody(BaseModel):
    """A memory.

    `sources` are the numbers of the messages of its session that it rests on; beyond `valid_to` it
    is not true any more.
    """

    id: UUID
    character_id: UUID
    session_id: UUID | None
    kind: MemoryKind
    text: str
    speaker: str
    role: str
    language: str
    sources: list[int]
    importance: float
    said_at: datetime
    valid_from: datetime
    valid_to: datetime | None
    created_at: datetime


class MemoriesBody(BaseModel):
    """A page of memories, newest first; `next` is the `before` of the next page."""

    memories: list[MemoryBody]
    next: UUID | None


class FoundMemoriesBody(BaseModel):
    """Memories with words of a search, the best first."""

    memories: list[MemoryBody]


class DeletedMemoriesBody(BaseModel):
    """How many memories were deleted."""

    deleted: int
