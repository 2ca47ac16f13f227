"""The gateway as an ASGI application: `uvicorn api.app:app`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from api import (
    actions,
    agents,
    characters,
    events,
    health,
    me,
    memories,
    metrics,
    sessions,
    souls,
    story_routes,
    tasks,
    tickets,
    usage,
)
from api.access import AccessGate
from api.edge import Edge
from api.gateway import Gateway
from api.limits import BodyLimit
from api.openapi import describe
from api.origins import OriginGate, Origins
from api.pages import serve_pages
from api.problems import handle_problems
from api.socket import Sockets
from shared.errors import SettingsError
from shared.logs import set_up_logs
from shared.settings import Settings, get_settings

_ROUTERS = (
    health.router,
    metrics.router,
    agents.router,
    sessions.router,
    actions.router,
    tasks.router,
    events.router,
    characters.router,
    souls.router,
    memories.router,
    me.router,
    tickets.router,
    story_routes.router,
    usage.router,
)


class Application(FastAPI):
    """The HTTP application, with the sockets beside its layers; they are set once."""

    sockets: Sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a socket."""
        if scope["type"] == "websocket" and self.sockets.serves(scope):
            await self.sockets(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> Application:
    """An application that has connected to nothing yet; it runs once."""
    gateway = Gateway.from_settings(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = Application(
        title="Fireside",
        docs_url=None,
        redoc_url=None,
        # What is redirected is sent again, and to `http`, for who ends TLS is not known here.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    for router in _ROUTERS:
        app.include_router(router)
    origins = Origins(settings.allowed_origins)
    app.sockets = Sockets(gateway, origins)
    serve_pages(app)
    handle_problems(app)
    describe(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit)
    app.add_middleware(AccessGate, identity=gateway.identity)
    app.add_middleware(OriginGate, origins=origins)
    app.add_middleware(Edge, metrics=gateway.metrics)
    return app


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, and not for everyone who imports this module."""
    if name != "app":
        raise AttributeError(name)
    try:
        settings = get_settings()
    except SettingsError as error:
        sys.exit(f"fireside: {error}")
    set_up_logs(settings)
    globals()["app"] = app = create_app(settings)
    return app
