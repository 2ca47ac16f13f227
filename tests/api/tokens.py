"""An issuer of JWTs as operators have one: keys, a JWK set, good and bad tokens."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
AUDIENCE = "fireside"


class Issuer:
    """One RSA and one EC key, under the ids `rsa` and `ec`."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> str:
        """The public keys."""
        rsa_key = RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True)
        ec_key = ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True)
        keys = [{**rsa_key, "kid": "rsa", "use": "sig"}, {**ec_key, "kid": "ec"}]
        return json.dumps({"keys": keys})

    def token(self, *, kid: str | None = "ec", alg: str | None = None, **claims: Any) -> str:
        """A good token of user `ann`, but for what is given; a claim of None is left out."""
        key = self.rsa if kid == "rsa" else self.ec
        algorithm = alg or ("RS256" if kid == "rsa" else "ES256")
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(_claims(claims), key, algorithm=algorithm, headers=headers)

    def unsigned(self) -> str:
        """A token that says it needs no signature."""
        return f"{_part({'alg': 'none', 'kid': 'ec'})}.{_part(_claims({}))}."

    def signed_with_the_public_key(self) -> str:
        """A token whose "secret" is what everybody may know."""
        public = self.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        content = f"{_part({'alg': 'HS256', 'kid': 'rsa'})}.{_part(_claims({}))}"
        signature = hmac.new(public, content.encode(), hashlib.sha256).digest()
        return f"{content}.{_base64(signature)}"

    def signed_with_one_key_but_naming_the_other(self) -> str:
        """A token whose key id is the EC key's and whose algorithm and signature are RSA's."""
        return jwt.encode(_claims({}), self.rsa, algorithm="RS256", headers={"kid": "ec"})


def _claims(changes: dict[str, Any]) -> dict[str, Any]:
    claims = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 60} | changes
    return {name: value for name, value in claims.items() if value is not None}


def _part(content: dict[str, Any]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
