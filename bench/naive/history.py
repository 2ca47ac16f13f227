"""Chats and what was said in them, in Postgres."""

import os
import uuid

from sqlalchemy import Engine, ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Table(DeclarativeBase):
    """All tables."""


class Chat(Table):
    """One conversation."""

    __tablename__ = "chats"
    id: Mapped[str] = mapped_column(primary_key=True)


class Line(Table):
    """Something that was said."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    chat: Mapped[str] = mapped_column(ForeignKey(Chat.id), index=True)
    role: Mapped[str]
    text: Mapped[str]


def connect() -> Engine:
    """The engine of this process; a forked process must make its own."""
    return create_engine(os.environ["DATABASE_URL"].replace("://", "+psycopg://", 1))


def make_tables(engine: Engine) -> None:
    """Make what is missing."""
    Table.metadata.create_all(engine)


def begin(engine: Engine) -> str:
    """A new chat's id."""
    chat = Chat(id=uuid.uuid4().hex)
    with Session(engine) as session:
        session.add(chat)
        session.commit()
        return chat.id


def exists(engine: Engine, chat: str) -> bool:
    """Whether there is such a chat."""
    with Session(engine) as session:
        return session.get(Chat, chat) is not None


def messages(engine: Engine, chat: str) -> list[dict[str, str]]:
    """All that was said, as a model wants it."""
    with Session(engine) as session:
        lines = session.scalars(select(Line).where(Line.chat == chat).order_by(Line.id))
        return [{"role": line.role, "content": line.text} for line in lines]


def add(engine: Engine, chat: str, question: str, answer: str) -> None:
    """Keep a turn."""
    with Session(engine) as session:
        session.add(Line(chat=chat, role="user", text=question))
        session.flush()
        session.add(Line(chat=chat, role="assistant", text=answer))
        session.commit()
