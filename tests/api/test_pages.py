"""What a browser gets: the player page and its files, safely."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.pages import serve_pages
from api.problems import handle_problems


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write(tmp_path, secret_txt="secret", page__index_html="<p>Hi", page__static__app_js="go()")
    (tmp_path / "page" / "static" / "out.txt").symlink_to(tmp_path / "secret.txt")
    app = FastAPI()
    serve_pages(app, tmp_path / "page")
    handle_problems(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_the_page_runs_only_its_own_files(browser: httpx.AsyncClient) -> None:
    page = await browser.get("/")
    script = await browser.get("/static/app.js")
    policy = page.headers["content-security-policy"]

    assert (page.text, script.text) == ("<p>Hi", "go()")
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == script.headers["cache-control"] == "no-cache"
    assert script.headers["content-type"].startswith("text/javascript")


async def test_a_file_that_the_browser_has_is_not_sent_again(browser: httpx.AsyncClient) -> None:
    for path in ("/", "/static/app.js"):
        first = await browser.get(path)
        again = await browser.get(path, headers={"If-None-Match": first.headers["etag"]})

        assert again.status_code == 304
        assert again.headers.get("content-security-policy") == first.headers.get(
            "content-security-policy"
        )


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
async def test_a_file_is_sent_whole_whatever_range_is_asked_for(
    browser: httpx.AsyncClient, path: str
) -> None:
    whole = await browser.get(path)
    for asked in ("foo", "bytes=", "bytes=2-1", "bytes=9999-", "lines=1-2", "bytes=0-1", ""):
        response = await browser.get(path, headers={"Range": asked})

        assert (response.status_code, response.content) == (200, whole.content), asked
        assert response.headers["accept-ranges"] == "none"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.txt",
        "/static/%2e%2e/%2e%2e/secret.txt",
        "/static/..%2f..%2fsecret.txt",
        "/static//etc/passwd",
        "/static/out.txt",
        "/static/",
        "/static/nothing.js",
        "/static/%00",
        "/index.html",
    ],
)
async def test_nothing_outside_of_its_folder_is_served(
    browser: httpx.AsyncClient, path: str
) -> None:
    response = await browser.get(path)

    assert response.status_code == 404
    assert "secret" not in response.text


async def test_without_a_page_there_is_none(tmp_path: Path) -> None:
    app = FastAPI()
    serve_pages(app, tmp_path)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/")).status_code == 404
