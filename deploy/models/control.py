"""The hand on the scripted model: a client for its control routes, for tests and benchmarks."""

import asyncio
import http.client
import urllib.parse
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, JsonValue, TypeAdapter

from deploy.models.director import Call, Stats


class SeenRequest(BaseModel):
    """A request that the model got: its number, bearer key, the rule that answered, and the JSON
    body.
    """

    n: int
    key: str
    rule: str
    body: dict[str, JsonValue]


_SEEN = TypeAdapter(list[SeenRequest])
_CALLS = TypeAdapter(list[Call])


class ControlError(Exception):
    """The scripted model refused a control request; the text is its answer."""


class ScriptedModel:
    """Controls one scripted model. `url` is the base URL for OpenAI clients (ends in /v1).

    Plain blocking calls of about a millisecond. Wait with `until` inside a running event loop, so
    that the requests that are waited for can be made by it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port

    def script(self, *rules: Mapping[str, object], append: bool = False) -> None:
        """Set the rules (or add to them); ControlError if one is not valid."""
        self._call("POST", "/_script", {"rules": list(rules), "append": append})

    def say(self, *texts: str, **reply: object) -> None:
        """Answer the next requests with these texts, one each; then as before."""
        rules = [{"times": 1, "reply": {"text": text, **reply}} for text in texts]
        self.script(*rules, append=True)

    def batches(self, **script: object) -> None:
        """Say how batches go from now on, as a `BatchScript`."""
        self._call("POST", "/_batches", script)

    def batches_standing(self) -> dict[str, Any]:
        """Return the `files` and `batches` that there are, and how often was `asked` for what."""
        standing: dict[str, Any] = orjson.loads(self._call("GET", "/_batches"))
        return standing

    def profile(self, **settings: object) -> None:
        """Set the load profile (`ttft`, `chunks`, `duration`, `tool`) and count anew."""
        self._call("POST", "/_profile", settings)

    def reset(self) -> None:
        """Forget everything and let go of what holds."""
        self.release()
        self._call("POST", "/_reset", {})

    def release(self) -> int:
        """Let the answers that hang go on; returns how many."""
        answer = orjson.loads(self._call("POST", "/_release", {}))
        return int(answer["released"])

    def stats(self) -> Stats:
        """Return the counts."""
        return Stats.model_validate_json(self._call("GET", "/_stats"))

    def requests(self, last: int = 0) -> list[SeenRequest]:
        """Return the last requests, the oldest first (0: all that are remembered)."""
        return _SEEN.validate_json(self._call("GET", f"/_requests?last={last}"))

    def calls(self) -> list[Call]:
        """Return the log of calls, the oldest first."""
        return _CALLS.validate_json(self._call("GET", "/_calls"))

    def wait(self, *, timeout: float = 30.0, **counts: int) -> Stats:
        """Block until there were at least so many `requests`, `completed`, ... or exactly so many
        `in_flight`.

        TimeoutError if they do not come.
        """
        query = urllib.parse.urlencode({**counts, "timeout": timeout})
        return Stats.model_validate_json(self._call("GET", f"/_wait?{query}", timeout=timeout + 5))

    async def until(self, *, timeout: float = 30.0, **counts: int) -> Stats:
        """As `wait`, without blocking the event loop."""
        return await asyncio.to_thread(self.wait, timeout=timeout, **counts)

    def _call(self, method: str, path: str, body: object = None, *, timeout: float = 10.0) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else orjson.dumps(body))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status == 408:
            raise TimeoutError(f"the scripted model did not get there: {content.decode()}")
        if response.status != 200:
            raise ControlError(content.decode(errors="replace"))
        return content
