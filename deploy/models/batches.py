"""The scripted model's files and batches, as OpenAI has them, with the faults of a bad day.

A batch is answered when it is made, by the same rules as any request; how it looks from outside is
what `POST /_batches` says.
"""

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, PositiveInt, ValidationError

from deploy.models import wire
from deploy.models.director import Director
from deploy.models.request import BadRequestError, ChatRequest

_PATH = re.compile(r"(?:/v1)?/(files|batches)(?:/([A-Za-z0-9_-]+))?(?:/(content|cancel))?")
_SENT = re.compile(rb'filename="[^"]*"[^\r]*(?:\r\n[^\r]+)*\r\n\r\n(.*?)\r\n--', re.DOTALL)

Step = Literal["upload", "create", "list", "status", "content", "delete", "cancel"]


class BatchScript(BaseModel):
    """How batches go from now on.

    A batch is `in_progress` for `polls` questions, then as `ends` says, or for ever. So many
    `failed_lines` at the front of each stand in its error file. `refuse`, `garbage` and `silent`
    are steps that get this status, no JSON, or nothing at all, for the first `times` requests
    (None: all of them); with `after` what was asked for is done all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    polls: NonNegativeInt = 0
    ends: Literal["completed", "failed", "expired", "cancelled", "never"] = "completed"
    failed_lines: NonNegativeInt = 0
    refuse: dict[Step, int] = {}
    garbage: list[Step] = []
    silent: list[Step] = []
    after: bool = False
    times: PositiveInt | None = None


class _Request(BaseModel):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class _Batch:
    def __init__(self, number: int, request: _Request) -> None:
        self.id = f"batch_{number}"
        self.request = request
        self.polls = 0
        self.output: str | None = None
        self.errors: str | None = None
        self.cancelled = False


class BatchDesk:
    """Files and batches of one scripted model. `asked` counts the requests of each step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.script = BatchScript()
        self.asked: dict[str, int] = {}
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, _Batch] = {}
        self._struck = 0
        self._number = 0

    def follow(self, script: BatchScript) -> None:
        """Take a new script."""
        self.script, self._struck = script, 0

    def standing(self) -> JsonValue:
        """For `GET /_batches`: the files that there are, the batches, and what was asked."""
        batches: list[JsonValue] = [self._shown(one, peek=True) for one in self._batches.values()]
        return {"files": [*self._files], "batches": batches, "asked": {**self.asked}}

    def answer(
        self, director: Director, method: str, path: str, query: str, body: bytes, key: str
    ) -> bytes | None:
        """The response; None for silence.

        Raises:
            LookupError: this is no path of files or batches.
        """
        step, name = _step(method, path)
        self.asked[step] = self.asked.get(step, 0) + 1
        strikes = self._strikes(step)
        done = b""
        if not strikes or self.script.after:
            try:
                done = self._do(director, step, name, query, body, key)
            except (LookupError, ValidationError, ValueError, BadRequestError) as error:
                fault = wire.error_body(str(error), kind="invalid_request_error", code=None)
                return wire.json_response(fault, status=404 if _is_missing(error) else 400)
        if not strikes:
            return done
        if step in self.script.silent:
            return None
        if step in self.script.garbage:
            return wire.response(200, b"\xff{not json", content_type="application/json")
        status = self.script.refuse[step]
        fault = wire.error_body("scripted error", kind="server_error", code=None)
        return wire.json_response(fault, status=status)

    def _strikes(self, step: Step) -> bool:
        script = self.script
        if step not in {*script.refuse, *script.garbage, *script.silent}:
            return False
        self._struck += 1
        return script.times is None or self._struck <= script.times

    def _do(
        self, director: Director, step: Step, name: str, query: str, body: bytes, key: str
    ) -> bytes:
        match step:
            case "upload":
                found = _SENT.search(body)
                if found is None:
                    raise ValueError("there is no file in the form")
                return wire.json_response({"id": self._kept(found[1]), "object": "file"})
            case "content":
                return wire.response(200, self._files[name], content_type="application/jsonl")
            case "delete":
                del self._files[name]
                return wire.json_response({"id": name, "deleted": True})
            case "create":
                return wire.json_response(
                    self._create(director, _Request.model_validate_json(body), key)
                )
            case "list":
                return wire.json_response(self._page(dict(parse_qsl(query))))
            case "cancel":
                self._batches[name].cancelled = True
        return wire.json_response(self._shown(self._batches[name]))

    def _kept(self, content: bytes) -> str:
        self._number += 1
        name = f"file-{self._number}"
        self._files[name] = content
        return name

    def _create(self, director: Director, request: _Request, key: str) -> JsonValue:
        lines = self._files[request.input_file_id].splitlines()
        self._number += 1
        batch = _Batch(self._number, request)
        answered, failed = [], []
        for number, line in enumerate(lines):
            if number < self.script.failed_lines:
                error: JsonValue = {"code": "server_error", "message": "scripted error"}
                asked = orjson.loads(line)["custom_id"]
                failed.append(orjson.dumps({"custom_id": asked, "response": None, "error": error}))
            else:
                answered.append(self._answered(director, line, key))
        self._batches[batch.id] = batch
        batch.output = self._kept(b"\n".join(answered) + b"\n") if answered else None
        batch.errors = self._kept(b"\n".join(failed) + b"\n") if failed else None
        return self._shown(batch, peek=True)

    def _answered(self, director: Director, line: bytes, key: str) -> bytes:
        """The line of an output file: what the director's rules say, whole."""
        asked = orjson.loads(line)
        self._number += 1
        request = ChatRequest(orjson.dumps(asked["body"]), key=key, number=-self._number)
        performance = director.direct(request)
        director.ended(request.number, "completed", performance.usage)
        head, _, body = b"".join(performance.frames).partition(b"\r\n\r\n")
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return body
        status = int(head.split(b" ", 2)[1])
        response = {"status_code": status, "request_id": "req", "body": parsed}
        return orjson.dumps(
            {"id": "line", "custom_id": asked["custom_id"], "response": response, "error": None}
        )

    def _page(self, query: Mapping[str, str]) -> JsonValue:
        limit = int(query.get("limit", "20"))
        names = [*reversed(self._batches)]
        begin = names.index(query["after"]) + 1 if "after" in query else 0
        found = names[begin : begin + limit]
        shown: list[JsonValue] = [self._shown(self._batches[one], peek=True) for one in found]
        return {"object": "list", "data": shown, "has_more": begin + limit < len(names)}

    def _shown(self, batch: _Batch, *, peek: bool = False) -> JsonValue:
        if not peek:
            batch.polls += 1
        ends = self.script.ends
        over = not peek and batch.polls > self.script.polls and ends != "never"
        status = "cancelled" if batch.cancelled else ends if over else "in_progress"
        has_files = over and ends != "failed"
        return {
            "id": batch.id,
            "object": "batch",
            "status": status,
            "input_file_id": batch.request.input_file_id,
            "output_file_id": batch.output if has_files else None,
            "error_file_id": batch.errors if has_files else None,
            "metadata": batch.request.model_dump()["metadata"],
        }


def _step(method: str, path: str) -> tuple[Step, str]:
    found = _PATH.fullmatch(path)
    if found is None:
        raise LookupError(path)
    what, name, more = found.groups(default="")
    steps: dict[tuple[str, str, bool, str], Step] = {
        ("POST", "files", False, ""): "upload",
        ("GET", "files", True, "content"): "content",
        ("DELETE", "files", True, ""): "delete",
        ("POST", "batches", False, ""): "create",
        ("GET", "batches", False, ""): "list",
        ("GET", "batches", True, ""): "status",
        ("POST", "batches", True, "cancel"): "cancel",
    }
    return steps[method, what, bool(name), more], name


def _is_missing(error: Exception) -> bool:
    return isinstance(error, LookupError)
