"""Who calls: every request below /v1 and /api has a user before anything of it is read."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.identity import Caller, Identity
from api.origins import is_loopback_host
from api.problems import Problem
from shared.errors import FiresideError

LOCAL = Caller("local")
"""To whom everything belongs where access is `none`."""

PRIVATE = ("/v1/", "/api/")
"""What paths begin with that are for known users only."""


class AccessGate:
    """Finds the user of a request, or refuses it.

    `open` is access `none`: everything belongs to one user, and only this machine may call. The
    Host counts as well as the address: a page whose name was rebound to 127.0.0.1 is refused.
    """

    def __init__(self, app: ASGIApp, identity: Identity | None) -> None:
        self._app = app
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its user, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._admit(scope)
        except FiresideError as error:
            await problems.answer(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        state = scope.setdefault("state", {})
        if self._identity is None:
            check_loopback(scope)
            state["caller"] = LOCAL
        elif scope["path"].startswith(PRIVATE):
            state["caller"] = await self._identity.caller_of(_bearer(scope))
        elif scope["path"] == "/metrics" and not _is_local_call(scope):
            # The fleet's figures are no user's, and each page of them asks Postgres.
            raise Problem(
                "not_found",
                "Figures are shown to this machine, and to others at FIRESIDE_GATEWAY_METRICS.",
            )


def check_loopback(scope: Scope) -> None:
    """Refuse what did not come from this machine to this machine.

    Raises:
        Problem: `unauthorized`.
    """
    server = scope.get("server") or ("", None)
    if not (is_loopback_host(server[0]) and is_loopback_host(_host(scope))):
        raise Problem(
            "unauthorized", "Without access control this server answers on loopback only."
        )


def _is_local_call(scope: Scope) -> bool:
    client = scope.get("client") or ("", None)
    return is_loopback_host(client[0]) and is_loopback_host(_host(scope))


def _host(scope: Scope) -> str:
    return Headers(scope=scope).get("host") or ""


def _bearer(scope: Scope) -> str:
    scheme, _, token = (Headers(scope=scope).get("authorization") or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem("unauthorized", "Send `Authorization: Bearer <API key or JWT>`.")
    return token.strip()


async def user_of(request: Request) -> str:
    """The user whom the gate found."""
    caller: Caller = request.state.caller
    return caller.user_id


async def key_of(request: Request) -> str:
    """The id of the API key that the gate found, '' where there was none."""
    caller: Caller = request.state.caller
    return caller.key_id


async def caller_of(request: Request) -> Caller:
    """Who the gate found."""
    caller: Caller = request.state.caller
    return caller


User = Annotated[str, Depends(user_of)]
KeyId = Annotated[str, Depends(key_of)]
WhoCalls = Annotated[Caller, Depends(caller_of)]
