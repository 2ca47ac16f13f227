"""The nginx of the compose file, on loopback, in front of gateways that tests have started."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.local.process import Command
from deploy.local.server import HOST, HttpServer
from tests.deploy.container_files import CONTAINER


class Front(HttpServer):
    """One nginx with the configuration as it is, but for its addresses and its folder."""

    path = "/healthz"

    def __init__(self, gateways: Sequence[str], folder: Path) -> None:
        program = shutil.which("nginx")
        if program is None:
            pytest.skip("nginx is not installed here")
        self.file = folder / "nginx.conf"
        self._gateways = gateways
        # Its workers would be nobody's, who may not enter the folder of a test.
        user = " user root;" if os.geteuid() == 0 else ""
        argv = [program, "-p", str(folder), "-c", str(self.file), "-g", f"daemon off;{user}"]
        super().__init__(None, Command(name="nginx", argv=argv, log=folder / "nginx.log"))

    def prepare(self) -> None:
        """Write the configuration for the port that is tried now."""
        text = (CONTAINER / "nginx.conf").read_text()
        text = replaced(text, r"listen 8080;", f"listen {HOST}:{self.port};")
        text = replaced(text, r"(?<= )/tmp/", f"{self.file.parent}/")
        servers = [rf"server {urlsplit(url).netloc}\1" for url in self._gateways]
        text = replaced(text, r"server web:8000 resolve(.*;)", "\n".join(servers))
        self.file.write_text(text)

    def check(self) -> Command:
        """The command that only reads the configuration."""
        self.prepare()
        log = self.file.with_name("check.log")
        return replace(self.command, argv=[*self.command.argv, "-t"], log=log)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def replaced(text: str, pattern: str, by: str) -> str:
    """The text with every match replaced; there has to be one."""
    result, times = re.subn(pattern, by, text)
    assert times, pattern
    return result
