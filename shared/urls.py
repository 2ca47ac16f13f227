"""URLs in settings: whether the clients that are to read them can.

No error quotes one: whatever is malformed in it may be a piece of a password.
"""

from typing import Annotated
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import AfterValidator, SecretStr
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError

_NO_URL = "is not a URL; are special characters in it percent-encoded?"
_NO_OPTION = "has an option after its ? that is unknown or has a wrong value"


def _scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(_NO_URL) from None
    return parts.scheme if "://" in url else ""


def _postgres(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if _scheme(url) not in {"postgresql", "postgres"}:
        raise ValueError("must begin with postgresql://")
    netloc = urlsplit(url).netloc
    if netloc.count("@") > 1:
        raise ValueError(_NO_URL)  # SQLAlchemy takes the password to end at the first
    if netloc.endswith(":"):
        raise ValueError("has no port after the colon of its host")
    try:
        read = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(_NO_URL) from None
    try:
        dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
        _, options = dialect.create_connect_args(read)  # type: ignore[no-untyped-call]
        make_conninfo(**options)
    except (ArgumentError, psycopg.ProgrammingError, ValueError):
        raise ValueError(_NO_OPTION) from None
    return value


def _redis(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if _scheme(url) not in {"redis", "rediss", "unix"}:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        # Options are read when a connection is made; it connects at its first command only.
        BlockingConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (AttributeError, LookupError, RedisError, TypeError, ValueError):
        raise ValueError(_NO_OPTION) from None
    return value


def _broker(value: SecretStr) -> SecretStr:
    if not _scheme(value.get_secret_value()):
        raise ValueError("must be a URL, as redis://... or amqp://...")
    return value


def _http(value: str) -> str:
    if _scheme(value) not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    return value


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker)]
HttpUrl = Annotated[str, AfterValidator(_http)]
