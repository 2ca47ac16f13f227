"""Errors as clients see them: `application/problem+json` (RFC 9457) with a stable code.

The one place that knows which HTTP status an error has; WebSockets use the same codes.
"""

import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount

from shared.encoding import JsonObject, dumps
from shared.errors import FiresideError, QueueUnavailable, Refused, StoreUnavailable

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUSES = {
    "invalid_json": HTTPStatus.BAD_REQUEST,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "budget_spent": HTTPStatus.PAYMENT_REQUIRED,
    "forbidden_origin": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "idempotency_conflict": HTTPStatus.CONFLICT,
    "session_busy": HTTPStatus.CONFLICT,
    "version_conflict": HTTPStatus.CONFLICT,
    "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "too_many_tasks": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The status of each code. Codes are added, never renamed."""

_CODE_OF_STATUS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
}
"""The codes of what Starlette and FastAPI raise themselves."""

_RETRY_SECONDS = {"unavailable": 1, "rate_limited": 1}

_IN_FRAMES = ("position", "retry_after")
"""The further members that a frame has, too."""

TOO_LARGE = "payload_too_large"
"""Also the type of a validation error that means a text over its limit."""


_MOST_TOLD = 20
"""Wrong fields that one answer tells of; a body has room for ten thousands."""

_LONGEST_TOLD = 300
"""Characters of a field's name, and of what is wrong with it: both may quote the body."""


class Problem(FiresideError):
    """An error with its stable code; raise it, or make it of another with `problem_of`.

    Args:
        detail: for people; has no secrets.
        extra: members beside those that every problem has.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.extra = extra or {}
        self.headers = headers or {}


class ProblemBody(BaseModel):
    """The members of a problem, for the OpenAPI page."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; an unexpected one is logged under the id it is told."""
    match error:
        case Problem():
            return error
        case Refused():
            return Problem(error.code, str(error))
        case StoreUnavailable() | QueueUnavailable():
            log.warning("not available", error=str(error))
            return Problem("unavailable", "The server can't do this just now; try again soon.")
        case RequestValidationError():
            return _of_validation(error.errors(), in_request=True)
        case ValidationError():
            return _of_validation(error.errors(include_url=False, include_input=False))
        case HTTPException(status_code=status) if status in _CODE_OF_STATUS:
            return Problem(_CODE_OF_STATUS[status], str(error.detail), headers=error.headers or {})
    error_id = uuid.uuid4().hex
    log.error("unexpected error", error_id=error_id, exc_info=error)
    return Problem("internal_error", "Something went wrong here.", {"error_id": error_id})


def _of_validation(errors: Sequence[Mapping[str, Any]], *, in_request: bool = False) -> Problem:
    found = [
        {
            "field": ".".join(str(part) for part in error["loc"][in_request:])[:_LONGEST_TOLD],
            "message": str(error["msg"]).removeprefix("Value error, ")[:_LONGEST_TOLD],
        }
        for error in errors[:_MOST_TOLD]
    ]
    detail = "; ".join(f"{one['field']}: {one['message']}".removeprefix(": ") for one in found)
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem("invalid_json", "The body is not valid JSON.")
    if any(error["type"] == TOO_LARGE for error in errors):
        return Problem(TOO_LARGE, detail)
    if in_request and all(error["loc"][0] == "path" for error in errors):
        # An id that can't be one names nothing.
        return Problem("not_found", "There is nothing by this id.")
    return Problem("invalid_request", detail, {"errors": found})


def answer(error: Exception) -> Response:
    """The HTTP response for an error."""
    problem = problem_of(error)
    status = STATUSES[problem.code]
    body: JsonObject = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": problem.detail,
        "code": problem.code,
        **problem.extra,
    }
    headers = dict(problem.headers)
    if seconds := _RETRY_SECONDS.get(problem.code):
        headers["Retry-After"] = str(seconds)
    if problem.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(dumps(body), status.value, headers, media_type=MEDIA_TYPE)


def frame(error: Exception, action_id: str | None = None) -> bytes:
    """The WebSocket frame for an error; `action_id` is the frame's that it answers."""
    problem = problem_of(error)
    known = {} if action_id is None else {"id": action_id}
    told = {name: problem.extra[name] for name in _IN_FRAMES if name in problem.extra}
    error_body = {"code": problem.code, "message": problem.detail, **told}
    return dumps({"type": "error", **known, "error": error_body})


OF_BODIES = ("invalid_json", "forbidden_origin", "payload_too_large", "invalid_request")
"""What may be wrong with a request that has a body."""


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """How a route's problems stand in the OpenAPI page."""
    grouped: dict[HTTPStatus, list[str]] = {}
    for code in codes:
        grouped.setdefault(STATUSES[code], []).append(f"`{code}`")
    schema = {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
    return {
        status.value: {"description": ", ".join(names), "content": {MEDIA_TYPE: schema}}
        for status, names in grouped.items()
    }


def handle_problems(app: FastAPI) -> None:
    """Answer every error that routes raise."""

    async def handle(request: Request, error: Exception) -> Response:
        response = answer(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (known := _methods(request)):
            response.headers["Allow"] = ", ".join(known)
        return response

    for kind in (FiresideError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)


def _methods(request: Request) -> list[str]:
    """What a path may be asked with: each of its methods has a route of its own."""
    routes = [one for one in request.app.routes if not isinstance(one, Mount)]
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(one.matches({**request.scope, "method": method})[0] is Match.FULL for one in routes)
    ]
