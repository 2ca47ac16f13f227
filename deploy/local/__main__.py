"""`python -m deploy.local`: the whole of Fireside on this machine, until Ctrl-C."""

import os
import sys

from deploy.local.errors import LaunchError
from deploy.local.launcher import Launcher
from deploy.local.options import Options
from deploy.local.server import ROOT


def main() -> int:
    """Run the launcher as the environment asks; returns the exit code."""
    try:
        options = Options.read(os.environ, root=ROOT)
    except LaunchError as error:
        print(f"fireside: {error}", file=sys.stderr)
        return 2
    return Launcher(options).up()


if __name__ == "__main__":
    sys.exit(main())
