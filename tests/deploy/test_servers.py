"""The embedded servers as tests and benchmarks use them."""

import socket
from pathlib import Path

import psycopg
import redis

from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey


def test_a_test_has_a_database_of_its_own(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE only_here (n int)")
        found = connection.execute("SELECT lower('ЖАР'), current_setting('TimeZone')").fetchone()

    assert found == ("жар", "UTC")


def test_another_test_has_another_database(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT to_regclass('only_here')").fetchone()

    assert found == (None,)


def test_a_killed_postgres_comes_back_with_its_rows(
    postgres_server: EmbeddedPostgres, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        postgres_server.kill()
    postgres_server.start()

    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_valkey_keeps_what_it_has_acknowledged(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / 'a "quoted" name') as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", 7)
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"7"


def test_redis_begins_empty_and_wants_its_password(
    valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("a", "b")
    with socket.create_connection(("127.0.0.1", valkey_server.port), timeout=5) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100) == b"-NOAUTH Authentication required.\r\n"
