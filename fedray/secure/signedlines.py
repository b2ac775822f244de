"""Signed lines: JSON objects on a line each, of which anybody who has the signer's public key can check every byte.

A line is one JSON object with sorted keys, no blanks and nothing but ASCII, with ``signature`` as its last key: the Ed25519 signature (RFC 8032) of
:data:`DOMAIN` followed by the object without that key. The signer's public key is under ``key``. Whoever checks a line takes the bytes as they
stand, so no program needs to write JSON as this one does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: What is signed in front of an object, so that no signature means anything elsewhere.
DOMAIN = b"fedray signed line 1\n"
#: What a chain of lines begins with in place of the hash of a line before.
FIRST = "0" * 64

_BEFORE, _BEHIND = b',"signature":"', b'"}'
_TAIL = len(_BEFORE) + 128 + len(_BEHIND)
_SIGNED = re.compile(_BEFORE + rb"[0-9a-f]{128}" + _BEHIND)


@dataclass(frozen=True)
class SignedLine:
    """A line that has been read, and not yet checked against a key that is known.

    Attributes:
        body: the object without the signature.
        line: the bytes, without a line end.
    """

    body: Mapping[str, Any]
    line: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the line, hexadecimal, by which others refer to it."""
        return sha256(self.line).hexdigest()

    @property
    def key(self) -> str:
        """The public key that the line names, 64 hexadecimal digits."""
        return str(self.body["key"])

    def signed_by(self, public: bytes) -> bool:
        """Whether the line names this public key (32 bytes) and is signed by it."""
        if self.key != public.hex():
            return False
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(
                bytes.fromhex(self.line[-_TAIL:][len(_BEFORE) : -2].decode()), _message(self.line)
            )
        except (InvalidSignature, ValueError):
            return False
        return True


def canonical(data: Mapping[str, Any]) -> bytes:
    """An object as JSON with sorted keys, no blanks and nothing but ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def public_hex(own: Ed25519PrivateKey) -> str:
    """The public key of a private key, 64 hexadecimal digits."""
    return own.public_key().public_bytes_raw().hex()


def sign_line(body: Mapping[str, Any], own: Ed25519PrivateKey) -> SignedLine:
    """Sign an object, to which the signer's public key is added."""
    whole = {**body, "key": public_hex(own)}
    text = canonical(whole)
    return SignedLine(whole, text[:-1] + _BEFORE + own.sign(DOMAIN + text).hex().encode() + _BEHIND)


def read_signed(line: bytes) -> SignedLine:
    """Read a line, without its end; nothing is checked but its form.

    Raises:
        ValueError: it is no signed line.
    """
    if _SIGNED.fullmatch(line[-_TAIL:]) is None:
        raise ValueError("it does not end with a signature")
    body = json.loads(line[:-_TAIL] + b"}")
    if not isinstance(body, dict) or not isinstance(body.get("key"), str) or not isinstance(body.get("kind"), str):
        raise ValueError("it is no object that names its kind and its key")
    return SignedLine(body, line)


def _message(line: bytes) -> bytes:
    return DOMAIN + line[:-_TAIL] + b"}"
