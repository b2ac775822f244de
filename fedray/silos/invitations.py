"""What passes between a coordinator and a silo that enrols: the token, and the proof that the silo has the key of its receipts.

The token is one word: ``fedray1.`` and, in base64 for URLs (RFC 4648, section 5, without padding), a JSON object with the client's name, the enrolment's
address, the SHA-256 of the federation's certificate, by which the silo knows whom to trust before it has anything else, and a secret of 32 bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedray.errors import ConfigError

_HEAD = "fedray1."
_LONGEST = 2000  # characters of a token
_PROOF = b"fedray: this silo signs its receipts by this key, and asks for this certificate\0"


def new_secret() -> bytes:
    """Draw the secret of a token, 32 bytes of the operating system's generator."""
    return secrets.token_bytes(32)


@dataclass(frozen=True)
class Invitation:
    """What a token says.

    Attributes:
        client: name of the client that is invited.
        address: HOST:PORT of the enrolment.
        federation: SHA-256 of the certificate of the federation's authority, 32 bytes.
        secret: what admits, 32 bytes.
    """

    client: str
    address: str
    federation: bytes
    secret: bytes = field(repr=False)

    def token(self) -> str:
        """Return the token, one word."""
        said = {"client": self.client, "address": self.address, "federation": self.federation.hex(), "secret": self.secret.hex()}
        return _HEAD + base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")


def read_token(token: str) -> Invitation:
    """Read a token.

    Raises:
        ConfigError: it is none, or only a part of one; the sentence does not quote it.
    """
    said = token.strip()
    try:
        if not said.startswith(_HEAD) or len(said) > _LONGEST:
            raise ValueError
        coded = said.removeprefix(_HEAD)
        found = json.loads(base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True))
        made = Invitation(found["client"], found["address"], bytes.fromhex(found["federation"]), bytes.fromhex(found["secret"]))
        if len(made.federation) != 32 or len(made.secret) != 32 or made.token() != said:
            raise ValueError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ConfigError(
            f"the token is none, or not whole ({len(said)} characters); copy the whole word that fedray federation invite printed."
        ) from None
    return made


def prove(key: Ed25519PrivateKey, request: bytes) -> bytes:
    """Sign a silo's request for a certificate (PEM) by the key of its receipts; 64 bytes."""
    return key.sign(_PROOF + hashlib.sha256(request).digest())


def check_proof(signing: str, request: bytes, proof: bytes) -> bool:
    """Return whether ``proof`` is :func:`prove`'s signature of a request by the key ``signing`` (64 hexadecimal digits)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signing)).verify(proof, _PROOF + hashlib.sha256(request).digest())
    except (ValueError, InvalidSignature):
        return False
    return True
