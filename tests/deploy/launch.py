"""Runs the launcher with programs given as JSON, as `python -m deploy.local` runs it with our own.

python -m tests.deploy.launch '{"gateway": [...], "worker": [...], "migrate": [...]}'
"""

import json
import os
import signal
import sys

from deploy.local.launcher import Launcher, Programs
from deploy.local.options import Options
from deploy.local.server import ROOT
from deploy.local.supervisor import Policy

if __name__ == "__main__":
    # The tests themselves may run under nohup, which the launcher would respect.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    launcher = Launcher(
        Options.read(os.environ, root=ROOT),
        programs=Programs(**json.loads(sys.argv[1])),
        policy=Policy(first_pause=0.02, longest_pause=0.1, attempts=3),
    )
    sys.exit(launcher.up())
