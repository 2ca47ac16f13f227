"""Who a bearer token belongs to: API keys, and JWTs of an issuer that the operator trusts."""

import hashlib
import re
from dataclasses import dataclass
from time import monotonic

import jwt

from api.jwks import SigningKeys
from api.problems import Problem
from shared.errors import InvalidRequest
from shared.settings import Settings
from shared.store import api_keys
from shared.store.database import Database

_KNOWN_SECONDS = 10.0
"""How long a key counts as known: a revoked one works for so long at the most, though nothing
lasting can be begun with it (see `shared.store.api_keys.hold`)."""

_UNKNOWN_SECONDS = 1.0
_MAX_CACHED = 10_000
_CLOCK_SKEW_SECONDS = 5

_NEVER = 2**53
"""The last second that a token may run out in; one that names a later one, for which clocks and
timers have no number, runs out then."""

_USER_ID = re.compile(r"[A-Za-z0-9._:@|+=/-]{1,128}")


def check_user_id(user_id: str) -> str:
    """The id itself; raises InvalidRequest where it is too long or has other characters.

    Letters, digits and ``._:@|+=/-``, as issuers put them into `sub`.
    """
    if not _USER_ID.fullmatch(user_id):
        raise InvalidRequest("a user id has 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + = / -")
    return user_id


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls; `key_id` is that of the API key, '' for those who come without one, and `until`
    when a JWT has run out, in seconds since 1970."""

    user_id: str
    key_id: str = ""
    until: int | None = None


class Identity:
    """Tells users by their tokens."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._db = db
        self._keys = SigningKeys(settings.jwt_jwks) if settings.jwt_jwks else None
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._algorithms = settings.jwt_algorithms
        self._owners: dict[bytes, tuple[Caller | None, float]] = {}

    async def caller_of(self, token: str) -> Caller:
        """Who has the token.

        Raises:
            Problem: `unauthorized`, or `unavailable` where the issuer's keys can't be had.
            StoreUnavailable: Postgres did not answer.
        """
        if token.startswith(api_keys.PREFIX):
            caller = await self._owner(token)
        else:
            caller = await self._of_jwt(token)
        if caller is None:
            raise Problem("unauthorized", "The token is not valid.")
        return caller

    def forget_keys(self) -> None:
        """Ask for each key anew: some were deleted."""
        self._owners.clear()

    async def _owner(self, key: str) -> Caller | None:
        digest = hashlib.sha256(key.encode()).digest()
        owner, until = self._owners.get(digest, (None, 0.0))
        if monotonic() < until:
            return owner
        found = await api_keys.owner(self._db, key)
        owner = None if found is None else Caller(found[0], str(found[1]))
        if len(self._owners) >= _MAX_CACHED:
            self._owners.clear()
        known_for = _UNKNOWN_SECONDS if owner is None else _KNOWN_SECONDS
        self._owners[digest] = (owner, monotonic() + known_for)
        return owner

    async def _of_jwt(self, token: str) -> Caller | None:
        """Who a JWT is of that is ours to trust.

        The algorithm is one of the operator's list and fits the key: neither `none` nor a public
        key used as a shared secret passes.
        """
        if self._keys is None:
            return None
        try:
            key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            until = min(int(claims["exp"]) + _CLOCK_SKEW_SECONDS, _NEVER)
            return Caller(check_user_id(claims["sub"]), until=until)
        except (jwt.InvalidTokenError, jwt.InvalidKeyError, InvalidRequest, ValueError):
            return None
