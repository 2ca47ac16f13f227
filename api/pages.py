"""What people open in a browser: the player page and the API's documentation."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parent / "page"

_PAGE_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_CDN = "https://cdn.jsdelivr.net"


class _Files(StaticFiles):
    """Files that a browser may keep but asks about before it uses them, and that it gets whole."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file. A server may ignore any Range, and has to where it makes no sense, which
        Starlette would answer in words of its own."""
        del MutableHeaders(scope=scope)["range"]
        return await super().get_response(path, scope)

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """The file, with its headers."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type] # passed on as is
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Accept-Ranges"] = "none"
        return response


def serve_pages(app: FastAPI, page: Path = PAGE) -> None:
    """Serve `index.html` of the page's folder at `/`, its other files below `/static`."""
    _serve_docs(app)
    if not (page / "index.html").is_file():
        return
    files = _Files(directory=page)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        response = await files.get_response("index.html", request.scope)
        response.headers["Content-Security-Policy"] = _PAGE_CSP
        return response

    assets = page / "static" if (page / "static").is_dir() else page
    app.mount("/static", _Files(directory=assets), name="static")


def _serve_docs(app: FastAPI) -> None:
    html = get_swagger_ui_html(
        openapi_url="/openapi.json", title=app.title, swagger_favicon_url="data:,"
    )
    content = bytes(html.body)
    headers = {"Content-Security-Policy": _docs_csp(content)}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(content, headers=headers)


def _docs_csp(html: bytes) -> str:
    """The policy of a page whose only script of its own is named by its hash."""
    hashes = [
        base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in re.findall(rb"<script>(.*?)</script>", html, re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{one}'" for one in hashes)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_CDN} {scripts}",
            f"style-src {_CDN} 'unsafe-inline'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
