"""A provider that means its limits: whoever asks too much gets 429 and is told for how long."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from tests.web import served


class StrictProvider:
    """OpenAI's protocol on loopback, with limits over the last `window` seconds.

    `refused` counts what it answered with 429, `answered` everything else; `peak` is how many
    calls were under way at once.

    Args:
        set_out: by user, a time before which their call was not made; it may have been long on its
            way. Only calls that were both made and came within one window are counted together.
        crowd: so many calls come at once, and whoever of them is refused comes once more. They are
            judged together, when all are there.
    """

    def __init__(
        self,
        *,
        requests: int | None = None,
        window: float = 1.0,
        seconds: float = 0.0,
        tokens: int = 10,
        set_out: Mapping[str, float] | None = None,
        crowd: int = 0,
    ) -> None:
        self.url = ""
        self.refused = 0
        self.answered = 0
        self.peak = 0
        self.users: list[str] = []
        self.refuse_for: float | None = None
        self._requests = requests
        self._window = window
        self._seconds = seconds
        self._tokens = tokens
        self._times: list[float] = []
        self._under_way = 0
        self._set_out = {} if set_out is None else set_out  # it fills while the calls are made
        self._crowd = crowd
        self._here = 0
        self._judging = asyncio.Event()
        self._judged_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["StrictProvider"]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        async with served(app) as url:
            self.url = f"{url}/v1"
            yield self

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        user = body["messages"][-1]["content"]
        now = await self._with_the_crowd() if self._crowd else time.monotonic()
        wait = self._refusal(user, now)
        if wait is not None:
            self.refused += 1
            headers = {"Retry-After": f"{wait:.3f}"}
            return web.json_response({"error": "slow down"}, status=429, headers=headers)
        self.users.append(user)
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        try:
            await asyncio.sleep(self._seconds)
            return await self._stream(request)
        finally:
            self._under_way -= 1
            self.answered += 1

    async def _with_the_crowd(self) -> float:
        """Wait until all have come, and give the one time at which they are judged."""
        judging = self._judging
        self._here += 1
        if self._here == self._crowd:
            self._crowd = max(0, self._crowd - (self._requests or self._crowd))
            self._here, self._judging = 0, asyncio.Event()
            self._judged_at = time.monotonic()
            judging.set()
        await judging.wait()
        return self._judged_at

    def _refusal(self, user: str, now: float) -> float | None:
        if self.refuse_for is not None:
            wait, self.refuse_for = self.refuse_for, None
            return wait
        past = now - self._window
        self._times = [one for one in self._times if one > past]
        set_out = self._set_out.get(user, now)
        if set_out <= past:
            return None
        if self._requests is not None and len(self._times) >= self._requests:
            return min(self._times) - past
        self._times.append(set_out)
        return None

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        usage = {"prompt_tokens": 1, "completion_tokens": self._tokens - 1}
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]},
            {"choices": [], "usage": usage | {"total_tokens": self._tokens}},
        ]
        for chunk in chunks:
            await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())
        await response.write(b"data: [DONE]\n\n")
        return response
