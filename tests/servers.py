"""Real servers for tests: each is started once in a session, at its first use, on a free port.

`postgres_url` is a fresh migrated database for each test, `db` a pool on it, `redis_url` an empty
database 0, `scripted_model` the hand on a model without rules, `pgbouncer` a pooler before that
Postgres, `wire` a line to the test's database that can be cut.
"""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from deploy.local.model import ScriptedModelProcess
from deploy.local.postgres import NOT_DURABLE, EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey
from deploy.models.control import ScriptedModel
from shared.migrate import migrate
from shared.settings import load_settings
from shared.store import connection
from shared.store.database import Database
from tests.pgbouncer import PgBouncer, program_path
from tests.wire import Wire

TEMPLATE = "fireside_template"
_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The session's Postgres; its data need not survive a crash of the machine."""
    folder = tmp_path_factory.mktemp("servers") / "postgres"
    with EmbeddedPostgres(folder, settings=NOT_DURABLE) as server:
        _let_in_quickly(server.url)
        yield server


def _let_in_quickly(url: str) -> None:
    """Have the same password cost one round of hashing: the tests log in many thousand times, each
    time for some milliseconds of CPU."""
    password = conninfo_to_dict(url)["password"]
    with psycopg.connect(url, autocommit=True) as postgres:
        postgres.execute("set scram_iterations = 1")
        postgres.execute(sql.SQL("alter user postgres password {}").format(str(password)))


@pytest.fixture(scope="session")
def database_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database to make copies of."""
    migrate(postgres_server.create_database(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def postgres_url(postgres_server: EmbeddedPostgres, database_template: str) -> Iterator[str]:
    """The URL of a database of this test's own."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name, template=database_template)
    postgres_server.drop_database(name)


@pytest.fixture(autouse=True)
def patient_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for half a minute does not cost this process a transaction."""
    patient = "set idle_in_transaction_session_timeout = '2min'"
    monkeypatch.setattr(connection, "_ON_CONNECT", f"{connection._ON_CONNECT}; {patient}")


@pytest.fixture
async def db(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool on the test's database."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    database = Database.from_settings(load_settings())
    yield database
    await database.close()


@pytest.fixture(scope="session")
def pgbouncer(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PgBouncer]:
    """A transaction pooler before the session's Postgres; skips where there is no such program."""
    if program_path() is None:
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    folder = tmp_path_factory.mktemp("servers") / "pgbouncer"
    with PgBouncer(folder, postgres_server.url) as pooler:
        yield pooler


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """The session's Valkey, which keeps nothing on disk."""
    folder = tmp_path_factory.mktemp("servers") / "valkey"
    with EmbeddedValkey(folder, durable=False) as server:
        yield server


@pytest.fixture
def redis_url(valkey_server: EmbeddedValkey) -> str:
    """The URL of an empty Redis database."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture(scope="session")
def scripted_model_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ScriptedModelProcess]:
    """The session's scripted model."""
    log = tmp_path_factory.mktemp("servers") / "model.log"
    with ScriptedModelProcess(log=log) as server:
        yield server


@pytest.fixture
def scripted_model(scripted_model_process: ScriptedModelProcess) -> Iterator[ScriptedModel]:
    """The hand on the scripted model, reset before the test; nothing hangs on after it."""
    model = ScriptedModel(scripted_model_process.url)
    model.reset()
    yield model
    model.reset()


@pytest.fixture
async def wire(postgres_url: str) -> AsyncIterator[Wire]:
    """A line to the test's Postgres that can be cut."""
    async with Wire(postgres_url) as line:
        yield line
