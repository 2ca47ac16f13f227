"""Fixtures for all tests: the real servers and the data that lies beside the checkout."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.ports import closed_port
from tests.servers import (
    database_template,
    db,
    patient_transactions,
    pgbouncer,
    postgres_server,
    postgres_url,
    redis_url,
    scripted_model,
    scripted_model_process,
    valkey_server,
    wire,
)

__all__ = [
    "closed_port",
    "database_template",
    "db",
    "patient_transactions",
    "pgbouncer",
    "postgres_server",
    "postgres_url",
    "redis_url",
    "scripted_model",
    "scripted_model_process",
    "valkey_server",
    "wire",
]

# How long an example takes is up to the machine: a busy one needs seconds for any.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# For those who only want to know whether something fails, and not by which smallest example.
settings.register_profile(
    "unshrunk",
    parent=settings.get_profile("patient"),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (agent traces, ink stories, conversations)."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data that lies beside the checkout (../shared/data) is not here")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones come first: for one that is begun last, all other processes wait."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
