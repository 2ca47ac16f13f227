"""The public keys that JWTs are checked against, from a URL or a file, kept and renewed."""

import asyncio
from pathlib import Path
from time import monotonic

import httpx
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from api.problems import Problem
from shared.encoding import loads

log = structlog.get_logger(__name__)

_MAX_BYTES = 1 << 20
_NEVER = float("-inf")


class SigningKeys:
    """A JWK set; symmetric keys in it are passed over.

    Args:
        source: URL or file.
        renew_seconds: keys are read again this often: one that the issuer took back stops to
            count.
        retry_seconds: an unknown key id makes the keys be read again, but not more often than
            this.
    """

    def __init__(
        self, source: str, *, renew_seconds: float = 600, retry_seconds: float = 10
    ) -> None:
        self._source = source
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._keys: dict[str | None, PyJWK] = {}
        self._read_at = _NEVER
        self._tried_at = _NEVER
        self._reading = asyncio.Lock()

    async def find(self, key_id: object) -> PyJWK | None:
        """The key of this id, or the only key where a token names none.

        Raises:
            Problem: `unavailable`: no keys could be had yet.
        """
        found = self._get(key_id)
        is_due = monotonic() - self._read_at > self._renew_seconds
        # One who knows the key waits for an issuer that does not answer, not everyone.
        if found is None or (is_due and not self._reading.locked()):
            await self._renew()
            found = self._get(key_id)
        if self._read_at == _NEVER:
            raise Problem("unavailable", "The keys of the token's issuer can't be had just now.")
        return found

    def _get(self, key_id: object) -> PyJWK | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    async def _renew(self) -> None:
        async with self._reading:
            if monotonic() - self._tried_at < self._retry_seconds:
                return
            self._tried_at = monotonic()
            try:
                self._keys = _parse(await self._read())
                self._read_at = monotonic()
            except (httpx.HTTPError, OSError, ValueError) as error:
                # Those that are known go on to count: an issuer's short absence locks nobody out.
                log.warning("keys of the issuer not read", error=repr(error))

    async def _read(self) -> bytes:
        if not self._source.startswith(("https://", "http://")):
            return await asyncio.to_thread(Path(self._source).read_bytes)
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            response = await client.get(self._source)
            response.raise_for_status()
            if len(response.content) > _MAX_BYTES:
                raise ValueError("the key set is too large")
            return response.content


def _parse(data: bytes) -> dict[str | None, PyJWK]:
    content = loads(data)
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK set")  # noqa: TRY004 - it is the file that is wrong
    keys: dict[str | None, PyJWK] = {}
    for entry in entries:
        try:
            if entry["kty"] != "oct" and entry.get("use", "sig") == "sig":
                keys[entry.get("kid")] = PyJWK.from_dict(entry)
        except (PyJWTError, KeyError, TypeError, AttributeError, ValueError) as error:
            log.warning("a key of the issuer is passed over", error=repr(error))
    return keys
