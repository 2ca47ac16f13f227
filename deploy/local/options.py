"""What the environment asks of the launcher, checked before anything is started."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deploy.local.errors import LaunchError


class Llm(StrEnum):
    """Which model server the launcher starts."""

    LOCAL = "local"
    SCRIPTED = "scripted"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The launcher's settings. `llm` is NONE if the operator names a model or an endpoint of
    their own.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    home: Path
    llm: Llm = Llm.LOCAL
    auth: str = "none"

    @property
    def page(self) -> str:
        """The URL of the player page, as seen from this machine."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @classmethod
    def read(cls, environment: Mapping[str, str], *, root: Path) -> "Options":
        """Read the environment; LaunchError names the variable that makes no sense.

        A relative FIRESIDE_HOME, and the default `.fireside`, lie below `root`.
        """
        options = cls(
            host=environment.get("FIRESIDE_HOST") or "127.0.0.1",
            port=_port(environment.get("PORT") or "8000"),
            home=root / (environment.get("FIRESIDE_HOME") or ".fireside"),
            llm=_llm(environment),
            auth=environment.get("FIRESIDE_AUTH") or "none",
        )
        if options.auth == "none" and not is_loopback(options.host):
            raise LaunchError(
                f"FIRESIDE_HOST={options.host} can be reached by others, so FIRESIDE_AUTH must not "
                "be none: without it every request is the user `local`"
            )
        return options


def is_loopback(host: str) -> bool:
    """Tell whether an address, or the name localhost, is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise LaunchError(f"PORT must be a number from 1 to 65535, not {text!r}")
    return int(text)


def _llm(environment: Mapping[str, str]) -> Llm:
    if environment.get("FIRESIDE_MODEL_URL"):
        if not environment.get("FIRESIDE_MODEL"):
            raise LaunchError("FIRESIDE_MODEL_URL is set, so FIRESIDE_MODEL must name its model")
        return Llm.NONE
    named = environment.get("FIRESIDE_LLM")
    if not named:
        return Llm.NONE if environment.get("FIRESIDE_MODEL") else Llm.LOCAL
    try:
        return Llm(named)
    except ValueError:
        raise LaunchError(f"FIRESIDE_LLM must be local, scripted or none, not {named!r}") from None
