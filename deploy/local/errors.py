"""What can go wrong while processes are started here.

LaunchError
|-- PortInUseError
|-- DataFolderError
|-- ProgramMissingError
`-- StartFailedError
    `-- GivenUpError
Each message is one line that a user can act upon.
"""

from pathlib import Path


class LaunchError(Exception):
    """Something that stops the start; its text is one line for the user."""


class PortInUseError(LaunchError):
    """Another program listens on the port that was asked for."""


class DataFolderError(LaunchError):
    """A folder cannot hold the data: wrong kind, owner, version, or no room."""


class ProgramMissingError(LaunchError):
    """A program or package that has to be started is not installed."""


class StartFailedError(LaunchError):
    """A child ended, or did not answer in time, instead of becoming ready.

    `log` is where the child wrote why.
    """

    def __init__(self, message: str, *, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class GivenUpError(StartFailedError):
    """A child has crashed too often in a row to be started once more."""
