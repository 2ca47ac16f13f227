"""The Kubernetes manifests: their settings, and that they fit each other and the program."""

import math
import re
import tomllib
from typing import Any

import pytest

from shared.settings import Settings
from tests.deploy.container_files import KUBERNETES, ROOT, Mapping, is_setting, manifests, variables

VERSIONS = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Ingress": "networking.k8s.io/v1",
    "Job": "batch/v1",
    "PodDisruptionBudget": "policy/v1",
    "Secret": "v1",
    "Service": "v1",
}
PODS = {
    "web": "Deployment/fireside-web",
    "worker": "Deployment/fireside-worker",
    "embed": "Deployment/fireside-embed",
    "migrate": "Job/fireside-migrate",
    "command": "Job/fireside-command-",
}


def pod(name: str) -> Mapping:
    found: Mapping = manifests()[PODS[name]]["spec"]["template"]["spec"]
    return found


def container(name: str) -> Mapping:
    (only,) = pod(name)["containers"]
    found: Mapping = only
    return found


def keys_of_secrets(name: str) -> set[str]:
    return {one["valueFrom"]["secretKeyRef"]["key"] for one in container(name)["env"]}


def config() -> dict[str, str]:
    data: dict[str, str] = manifests()["ConfigMap/fireside"]["data"]
    return data


def test_what_there_is() -> None:
    objects = manifests()

    assert set(objects) == {
        "ConfigMap/fireside",
        "Deployment/fireside-embed",
        "Deployment/fireside-web",
        "Deployment/fireside-worker",
        "HorizontalPodAutoscaler/fireside-web",
        "HorizontalPodAutoscaler/fireside-worker",
        "Ingress/fireside",
        "Job/fireside-command-",
        "Job/fireside-migrate",
        "PodDisruptionBudget/fireside-web",
        "PodDisruptionBudget/fireside-worker",
        "Secret/fireside",
        "Secret/fireside-worker",
        "Service/fireside-web",
    }
    for one in objects.values():
        assert one["apiVersion"] == VERSIONS[one["kind"]]
        assert "namespace" not in one["metadata"]


def test_a_folder_that_is_applied_brings_no_secret() -> None:
    applied = [path for path in KUBERNETES.iterdir() if path.suffix in {".yaml", ".yml", ".json"}]

    assert [path for path in applied if "kind: Secret\n" in path.read_text()] == []


def test_each_setting_is_a_setting() -> None:
    secret = manifests()["Secret/fireside"]["stringData"]
    used = set(config()) | set(secret) | {key for name in PODS for key in keys_of_secrets(name)}

    assert {name for name in used if is_setting(name)} == used
    assert used - variables() == set()
    assert all(isinstance(value, str) for value in [*config().values(), *secret.values()])


def test_the_settings_are_valid_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**config(), **manifests()["Secret/fireside"]["stringData"]}.items():
        monkeypatch.setenv(name, value)

    assert Settings().auth == "required"


def test_secrets_go_to_whom_they_concern() -> None:
    servers = {"DATABASE_URL", "REDIS_URL"}

    assert {name: keys_of_secrets(name) for name in PODS} == {
        "web": servers,
        "worker": servers | {"FIRESIDE_MODEL_API_KEY", "FIRESIDE_MODEL_CHEAP_API_KEY"},
        "embed": servers | {"FIRESIDE_EMBEDDINGS_API_KEY"},
        "migrate": {"DATABASE_URL"},
        "command": servers,
    }
    given = set[str]().union(*(keys_of_secrets(name) for name in PODS))
    assert given == set(manifests()["Secret/fireside"]["stringData"])


def test_keys_of_any_provider_go_to_those_who_call_models() -> None:
    secret = {"secretRef": {"name": "fireside-worker", "optional": True}}
    given = manifests()["Secret/fireside-worker"]["stringData"]

    assert {name for name in PODS if secret in container(name)["envFrom"]} == {"worker", "embed"}
    assert all(name.endswith("_API_KEY") and not is_setting(name) for name in given)


@pytest.mark.parametrize("name", sorted(PODS))
def test_pods_run_without_rights(name: str) -> None:
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["automountServiceAccountToken"] is False
    assert pod(name)["enableServiceLinks"] is False
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_all_run_one_image_of_this_release() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert {container(name)["image"] for name in PODS} == {f"fireside:{version}"}


def test_processes_have_more_time_to_stop_than_they_drain() -> None:
    drain = float(config()["FIRESIDE_DRAIN_SECONDS"])
    waited = float(container("web")["lifecycle"]["preStop"]["exec"]["command"][1])

    assert pod("web")["terminationGracePeriodSeconds"] >= drain + waited + 10
    for name in ("worker", "embed"):
        assert pod(name)["terminationGracePeriodSeconds"] >= drain + 10


@pytest.mark.parametrize("name", ["web", "worker"])
def test_selectors_select_the_pods(name: str) -> None:
    objects = manifests()
    label = {"app.kubernetes.io/name": f"fireside-{name}"}
    template = objects[PODS[name]]["spec"]["template"]
    selectors: list[Any] = [
        objects[PODS[name]]["spec"]["selector"]["matchLabels"],
        objects[f"PodDisruptionBudget/fireside-{name}"]["spec"]["selector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]

    assert label.items() <= template["metadata"]["labels"].items()
    assert selectors == [label, label, label]


def test_requests_find_their_way_to_the_gateway() -> None:
    objects = manifests()
    (rule,) = objects["Ingress/fireside"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    service = objects["Service/fireside-web"]
    (port,) = service["spec"]["ports"]

    assert path["backend"]["service"] == {"name": "fireside-web", "port": {"name": port["name"]}}
    assert service["spec"]["selector"] == {"app.kubernetes.io/name": "fireside-web"}
    assert container("web")["ports"][0] == {"name": port["targetPort"], "containerPort": 8000}
    assert container("web")["readinessProbe"]["httpGet"] == {
        "path": "/readyz?for=traffic",  # without Redis actions are accepted all the same
        "port": "http",
    }
    assert container("web")["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_a_release_whose_workers_do_not_serve_replaces_none_of_those_that_do() -> None:
    deployment = manifests()[PODS["worker"]]["spec"]

    assert container("worker")["readinessProbe"]["httpGet"] == {
        "path": "/metrics",
        "port": "metrics",
    }
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "25%"}
    assert deployment["minReadySeconds"] >= 10


@pytest.mark.parametrize(
    ("name", "setting"),
    [("web", "FIRESIDE_GATEWAY_METRICS"), ("worker", "FIRESIDE_WORKER_METRICS")],
)
def test_prometheus_finds_the_figures_and_nobody_else(name: str, setting: str) -> None:
    objects = manifests()
    port = int(config()[setting].removeprefix("0.0.0.0:"))
    annotations = objects[PODS[name]]["spec"]["template"]["metadata"]["annotations"]
    (served,) = objects["Service/fireside-web"]["spec"]["ports"]

    assert {"name": "metrics", "containerPort": port} in container(name)["ports"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
    assert served["targetPort"] == "http"


def test_the_ingress_waits_longer_than_a_stream_is_quiet() -> None:
    annotations = manifests()["Ingress/fireside"]["metadata"]["annotations"]
    waits = [value for name, value in annotations.items() if name.endswith("-read-timeout")]
    (longest,) = [
        bound
        for one in Settings.model_fields["ping_seconds"].metadata
        if (bound := getattr(one, "le", None)) is not None
    ]

    assert len(waits) == 2
    assert all(int(value.rstrip("s")) > longest for value in waits)


@pytest.mark.parametrize("name", ["web", "worker"])
def test_only_the_autoscaler_counts_them(name: str) -> None:
    objects = manifests()
    scaler = objects[f"HorizontalPodAutoscaler/fireside-{name}"]["spec"]

    assert "replicas" not in objects[PODS[name]]["spec"]
    assert scaler["scaleTargetRef"]["name"] == f"fireside-{name}"
    assert "cpu" in container(name)["resources"]["requests"]  # what its share is taken of


def test_the_connections_that_postgres_must_accept_are_told() -> None:
    objects = manifests()

    def most(name: str) -> int:
        """How many there are during an upgrade."""
        scaler = objects.get(f"HorizontalPodAutoscaler/fireside-{name}")
        spec = objects[PODS[name]]["spec"]
        count = scaler["spec"]["maxReplicas"] if scaler else spec["replicas"]
        surge = str(spec["strategy"]["rollingUpdate"]["maxSurge"])
        if surge.endswith("%"):
            return int(count) + math.ceil(int(count) * int(surge[:-1]) / 100)
        return int(count) + int(surge)

    quarantine_and_command = 2
    processes = sum(most(name) for name in ("web", "worker", "embed")) + quarantine_and_command
    told = f"{processes} make {processes * int(config()['FIRESIDE_DATABASE_POOL'])}"

    assert told in (KUBERNETES / "config.yaml").read_text()
    assert (
        f": {told.rsplit(maxsplit=1)[-1]} as the manifests"
        in (ROOT / "docs" / "deployment.md").read_text()
    )


def blocks_of_kubectl() -> list[str]:
    """What docs/deployment.md has people run to install and to upgrade."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    blocks: list[str] = re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [one for one in blocks if "-f config.yaml" in one]


def test_nothing_is_applied_after_a_migration_that_is_not_done() -> None:
    blocks = blocks_of_kubectl()

    assert len(blocks) == 2
    for block in blocks:
        lines = [line for line in block.splitlines() if "kubectl" in line]
        assert [line for line in lines[:-1] if not line.endswith(" &&")] == []
        (wait,) = [line for line in lines if "kubectl wait" in line]
        assert "--timeout=15m" in wait


def test_an_upgrade_applies_every_process() -> None:
    applied = {name for name in PODS if f"-f {name}.yaml" in blocks_of_kubectl()[1]}

    assert applied == set(PODS) - {"command"}
