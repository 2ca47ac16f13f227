"""The fleet of the tests, by its old name."""

from deploy.local.fleet import Fleet, Gateway, Worker

__all__ = ["Fleet", "Gateway", "Worker"]
