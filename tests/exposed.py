"""What a process shows to Prometheus, as who asks for it finds it."""

import urllib.request
from collections.abc import Callable


def lines_at(port: int, stop: Callable[[], None]) -> list[str]:
    """Ask once, and have it shown no more."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines: list[str] = answer.read().decode().splitlines()
    finally:
        stop()
    return lines
