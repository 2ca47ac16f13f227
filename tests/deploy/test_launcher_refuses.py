"""What the launcher cannot work with: one clear line each, an exit code, and nothing left
running.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.errors import LaunchError
from deploy.local.options import Llm, Options
from deploy.local.server import ROOT
from tests.deploy.launches import PATIENCE, Ended, Launch


def ends(home: Path, *, port: int | None = None, wrap: tuple[str, ...] = ()) -> Ended:
    with Launch(home, port=port, wrap=wrap) as launch:
        return launch.ended()


def refused(ended: Ended) -> str:
    """The one line on standard error of a launcher that has refused to start."""
    assert ended.code == 1
    (line,) = ended.errors
    return line.removeprefix("fireside: ")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(ends(tmp_path / "home", port=port))

    assert line == f"port {port} on 127.0.0.1 is in use by another program"
    assert not (tmp_path / "home").exists()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("")

    assert refused(ends(home)) == f"{home} is a file, but a folder is needed there"


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    line = refused(ends(tmp_path / "file" / "home"))

    assert line == f"cannot make the folder {tmp_path}/file/home: Not a directory"


def cluster(home: Path, version: str) -> Path:
    """Something that looks like an installation of that Postgres version."""
    data = home / "postgres" / "data"
    data.mkdir(parents=True, mode=0o700)
    (data / "PG_VERSION").write_text(version)
    (home / "postgres" / "password").write_text("secret")
    return data


def test_data_of_another_version(tmp_path: Path) -> None:
    data = cluster(tmp_path / "home", "17\n")

    assert refused(ends(tmp_path / "home")) == (
        f"{data} was made by Postgres 17, this is Postgres 18: "
        "dump it with the old version, or move it away to begin anew"
    )


@pytest.mark.parametrize("garbage", ["", "\x00\xff", "18.x", "eighteen"])
def test_broken_data(tmp_path: Path, garbage: str) -> None:
    data = cluster(tmp_path / "home", garbage)

    line = refused(ends(tmp_path / "home"))

    assert line == f"{data} is broken: PG_VERSION does not hold a version number"


def test_data_without_what_belongs_to_it(tmp_path: Path) -> None:
    data = cluster(tmp_path / "home", "18\n")

    line = refused(ends(tmp_path / "home"))

    assert line.startswith(
        "postgres ended with exit code 2 instead of starting: postgres: could not"
    )
    assert "postgresql.conf" in line
    assert line.endswith(f"(log: {tmp_path / 'home' / 'logs' / 'postgres.log'})")
    assert data.exists()


def test_no_data_and_no_password(tmp_path: Path) -> None:
    empty = tmp_path / "one" / "postgres" / "data"
    empty.mkdir(parents=True)
    data = cluster(tmp_path / "two", "18")
    (tmp_path / "two" / "postgres" / "password").unlink()

    assert refused(ends(tmp_path / "one")) == (
        f"{empty} is not a Postgres data folder: no PG_VERSION"
    )
    assert refused(ends(tmp_path / "two")) == (
        f"{data.parent}/password is missing, and {data} cannot be opened without it"
    )


def test_a_file_in_place_of_the_data(tmp_path: Path) -> None:
    data = tmp_path / "home" / "postgres" / "data"
    data.parent.mkdir(parents=True)
    data.write_text("")

    assert refused(ends(tmp_path / "home")) == (
        f"{data} is a file, but the Postgres data folder is needed there"
    )


def test_a_broken_append_only_file(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "valkey" / "data" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("garbage\n")

    line = refused(ends(tmp_path / "home"))

    assert line.startswith("valkey ended with exit code 1 instead of starting: ")


def test_a_folder_in_place_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "home" / "logs" / "postgres.log"
    log.mkdir(parents=True)

    assert refused(ends(tmp_path / "home")) == f"[Errno 21] Is a directory: '{log}'"


def test_a_full_disk(tmp_path: Path) -> None:
    """On a file system of 20 MB, mounted where only the launcher sees it."""
    (tmp_path / "small").mkdir()
    unshare = shutil.which("unshare")
    assert unshare is not None
    mounting = f'mount -t tmpfs -o size=20m none "{tmp_path}/small" && exec "$@"'
    wrap = (unshare, "--user", "--map-root-user", "--mount", "sh", "-c", mounting, "sh")

    line = refused(ends(tmp_path / "small" / "home", wrap=wrap))

    assert line == (f"the disk of {tmp_path}/small/home is full: 20 MB are free, 200 MB are needed")


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails in the middle of initdb."""
    line = refused(ends(tmp_path / "home", wrap=("sh", "-c", 'ulimit -f 500; exec "$@"', "sh")))

    assert line.startswith(f"cannot make the Postgres data folder {tmp_path}/home/postgres/data: ")
    assert not (tmp_path / "home" / "postgres" / "data").exists()
    with Launch(tmp_path / "home") as again:
        again.ready()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PORT": "http"}, "PORT must be a number from 1 to 65535, not 'http'"),
        ({"PORT": "70000"}, "PORT must be a number"),
        ({"PORT": "٣"}, "PORT must be a number"),
        ({"FIRESIDE_LLM": "big"}, "FIRESIDE_LLM must be local, scripted or none, not 'big'"),
        ({"FIRESIDE_MODEL_URL": "http://x/v1"}, "FIRESIDE_MODEL must name its model"),
        ({"FIRESIDE_HOST": "0.0.0.0"}, "FIRESIDE_AUTH must not be none"),
        ({"FIRESIDE_HOST": "::"}, "FIRESIDE_AUTH must not be none"),
        ({"FIRESIDE_HOST": "myhost", "FIRESIDE_AUTH": "none"}, "FIRESIDE_AUTH must not be none"),
    ],
)
def test_settings_that_make_no_sense(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        Options.read(environment, root=ROOT)


def test_settings_that_do(tmp_path: Path) -> None:
    own = {"FIRESIDE_MODEL_URL": "http://x/v1", "FIRESIDE_MODEL": "openai/x"}

    assert Options.read({}, root=tmp_path) == Options(home=tmp_path / ".fireside")
    assert Options.read({"FIRESIDE_HOME": "/a/b", "PORT": "80"}, root=tmp_path) == Options(
        home=Path("/a/b"), port=80
    )
    assert Options.read({"FIRESIDE_LLM": "scripted"}, root=tmp_path).llm is Llm.SCRIPTED
    assert Options.read(own, root=tmp_path).llm is Llm.NONE
    assert Options.read({"FIRESIDE_MODEL": "a/b"}, root=tmp_path).llm is Llm.NONE
    public = Options.read({"FIRESIDE_HOST": "0.0.0.0", "FIRESIDE_AUTH": "keys"}, root=tmp_path)
    assert public.page == "http://127.0.0.1:8000/"
    assert Options.read({"FIRESIDE_HOST": "::1"}, root=tmp_path).page == "http://[::1]:8000/"


def test_make_up_refuses_to_open_an_unguarded_port() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        cwd=ROOT,
        env={**os.environ, "FIRESIDE_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("fireside: FIRESIDE_HOST=0.0.0.0 can be reached by others")
    assert ended.stderr.count("\n") == 1
