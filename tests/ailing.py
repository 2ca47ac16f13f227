"""A Postgres that ails in one way or another for the length of a block."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from deploy.local.postgres import EmbeddedPostgres
from tests.waiting import PATIENCE, PAUSE

_NO_ROOM = """
create function no_room() returns trigger language plpgsql as
$$ begin raise exception 'could not extend file: No space left on device'
using errcode = '53100'; end $$;
create trigger no_room before insert on events for each statement execute function no_room();
create trigger no_room before insert on early_cancels
for each statement execute function no_room()
"""


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """All of its processes stand still; connections are taken by the kernel, and not answered."""
    stopped = [server.pid]
    try:
        os.kill(server.pid, signal.SIGSTOP)  # first, so that it makes no more
        for child in _children(server.pid):
            os.kill(child, signal.SIGSTOP)
            stopped.append(child)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def read_only(server: EmbeddedPostgres) -> Iterator[None]:
    """It takes no writes, as a replica in recovery, or a server that is about to be replaced."""
    with psycopg.connect(server.url_of("postgres"), autocommit=True) as admin:
        admin.execute("alter system set default_transaction_read_only = on")
        _reload(server, read_only="on")
        try:
            yield
        finally:
            admin.execute("alter system reset default_transaction_read_only")
            _reload(server, read_only="off")


def _reload(server: EmbeddedPostgres, *, read_only: str) -> None:
    """Have every process read the configuration anew; returns once each of them was told.

    The server tells its children, then reads it itself: a new connection has what it read.
    """
    deadline = time.monotonic() + PATIENCE
    url = server.url_of("postgres")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("select pg_reload_conf()")
    while True:
        with psycopg.connect(url, autocommit=True) as one:
            if one.execute("show default_transaction_read_only").fetchone() == (read_only,):
                return
        assert time.monotonic() < deadline, "the configuration is not read"
        time.sleep(PAUSE)


@contextmanager
def full_disk(url: str) -> Iterator[None]:
    """One database finds no room for further rows, and says so as a full disk does."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(_NO_ROOM)
        try:
            yield
        finally:
            admin.execute("drop function no_room cascade")
