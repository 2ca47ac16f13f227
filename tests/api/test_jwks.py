"""The issuer's keys: rotation, absence, and what may stand in a key set."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from api.jwks import SigningKeys
from api.problems import Problem
from tests.api.tokens import Issuer
from tests.waiting import within

RSA_KEY, EC_KEY = json.loads(Issuer().jwks())["keys"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def overwrite(file: Path, content: str) -> None:
    file.write_text(content)


def write(file: Path, *keys: Any) -> None:
    file.write_text(json.dumps({"keys": list(keys)}))


async def test_a_new_key_is_found_and_an_old_one_forgotten(file: Path) -> None:
    keys = SigningKeys(str(file), retry_seconds=0)
    write(file, RSA_KEY)
    assert await keys.find("rsa")
    write(file, EC_KEY)
    assert await keys.find("rsa")  # known, so nothing is read
    assert await keys.find("ec")
    assert await keys.find("rsa") is None


async def test_keys_are_renewed_also_while_all_are_known(file: Path) -> None:
    keys = SigningKeys(str(file), renew_seconds=0, retry_seconds=0)
    write(file, RSA_KEY, EC_KEY)
    assert await keys.find("rsa")
    write(file, EC_KEY)
    assert await keys.find("rsa") is None


async def test_while_one_waits_for_the_issuer_others_go_by_what_is_known() -> None:
    asked, answers = asyncio.Event(), asyncio.Semaphore(1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answers.locked():
            asked.set()
        await answers.acquire()
        body = Issuer().jwks().encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
        keys = SigningKeys(url, renew_seconds=0, retry_seconds=0)
        assert await keys.find("rsa")
        renewing = asyncio.create_task(keys.find("rsa"))
        await within(asked.wait())
        assert await keys.find("rsa")
        went_by = not renewing.done()
        answers.release()
        await renewing

    assert went_by


@pytest.mark.parametrize("broken", ["no json", "[]", "{}", '{"keys": 5}', ""])
async def test_known_keys_outlive_a_broken_source(file: Path, broken: str) -> None:
    keys = SigningKeys(str(file), renew_seconds=0, retry_seconds=0)
    write(file, RSA_KEY)
    assert await keys.find("rsa")
    overwrite(file, broken)
    assert await keys.find("rsa")


async def test_a_broken_key_hides_no_good_one(file: Path) -> None:
    write(file, 5, None, {}, {"kty": "x"}, {"kty": "RSA", "kid": "half"}, RSA_KEY)
    keys = SigningKeys(str(file), retry_seconds=0)
    assert await keys.find("rsa")
    assert await keys.find("half") is None


async def test_without_any_key_it_is_not_the_token_that_is_wrong(file: Path) -> None:
    with pytest.raises(Problem) as raised:
        await SigningKeys(str(file)).find("rsa")

    assert raised.value.code == "unavailable"


async def test_only_one_key_needs_no_id(file: Path) -> None:
    write(file, RSA_KEY)
    assert await SigningKeys(str(file)).find(None)
    write(file, RSA_KEY, EC_KEY)
    assert await SigningKeys(str(file)).find(None) is None


async def test_secrets_and_keys_for_encryption_are_passed_over(file: Path) -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"}
    write(file, secret, RSA_KEY | {"use": "enc"}, EC_KEY)
    keys = SigningKeys(str(file), retry_seconds=0)

    assert await keys.find("secret") is None
    assert await keys.find("rsa") is None
    assert await keys.find("ec")
