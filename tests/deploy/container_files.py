"""The container files, read as the programs that use them read them."""

import re
from pathlib import Path
from typing import Any

import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
KUBERNETES = ROOT / "deploy" / "kubernetes"

Mapping = dict[str, Any]


def variables() -> set[str]:
    """The name of every setting, as the environment has it."""
    return {
        str(getattr(field.validation_alias, "choices", [f"FIRESIDE_{name.upper()}"])[0])
        for name, field in Settings.model_fields.items()
    }


def is_setting(name: str) -> bool:
    """Whether a variable claims to be a setting of ours."""
    return name.startswith("FIRESIDE_") or name in {"DATABASE_URL", "REDIS_URL"}


def compose() -> Mapping:
    loaded: Mapping = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def manifests() -> dict[str, Mapping]:
    """Kubernetes objects by `Kind/name`, the examples included."""
    objects = [
        one for path in sorted(KUBERNETES.iterdir()) for one in yaml.safe_load_all(path.read_text())
    ]
    return {f"{one['kind']}/{_name(one['metadata'])}": one for one in objects}


def _name(metadata: Mapping) -> str:
    return str(metadata.get("name") or metadata["generateName"])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), with its lines joined."""
    text = (CONTAINER / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(line[0], " ".join(line[1].split())) for line in lines]


def seconds(duration: str) -> float:
    """A compose duration as `40s` or `1m30s`."""
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", duration))


def interpolate(text: str, environment: dict[str, str]) -> str:
    """What compose makes of `${NAME:-default}` and `${NAME:?error}`; KeyError where it fails."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3]
        return environment.get(name) or (rest if kind == ":-" else environment[name])

    return re.sub(r"(?<!\$)\$\{(\w+)(:-|:\?)([^}]*)\}", value, text).replace("$$", "$")
