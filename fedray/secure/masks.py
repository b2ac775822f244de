"""Keys that two members agree on, and masks that are keystreams.

Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning, section 4. X25519 (RFC 7748), HKDF-SHA256 (RFC
5869) and AES-256 in counter mode are those of the package ``cryptography``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedray.secure.protocol import Ring

#: Version of the protocol; part of whatever is derived, sealed or signed, so that it means nothing elsewhere.
VERSION = b"fedray/secagg/1"
#: Bytes of a SHA-256 hash.
HASH = 32
#: Values that are masked at once: they and the keystream stay in the processor's cache.
_BLOCK = 1 << 14


def agreed_key(own: X25519PrivateKey, other: bytes, purpose: bytes, context: bytes, pair: tuple[int, int]) -> bytes:
    """Return the key that two members share and nobody else knows, 32 bytes.

    Args:
        own: a member's private key.
        other: the other member's public key, 32 bytes.
        purpose: what the key is for.
        context: what both have to know alike, of a length that follows from the purpose.
        pair: the members' numbers, in any order.

    Raises:
        ValueError: the public key is none.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:  # a point of small order, with which all private keys agree on zero
        raise ValueError(f"the public key {other.hex()} is not valid") from None
    numbers = b"".join(number.to_bytes(4, "little") for number in sorted(pair))
    return HKDF(SHA256(), 32, salt=None, info=b"/".join((VERSION, purpose, numbers + context))).derive(secret)


def add_masks(values: Ring, plus: Sequence[bytes], minus: Sequence[bytes] = ()) -> None:
    """Add the keystreams of some keys to a vector and subtract those of others, in place and modulo 2**64.

    A keystream is that of AES-256 in counter mode from 0, read as little-endian integers of 64 bits, so a key must be used for one vector
    only. The vector is gone through once, block by block.

    Args:
        values: int64 ``[size]``.
        plus, minus: keys of 32 bytes.
    """
    zeros, scratch = memoryview(bytes(8 * _BLOCK)), bytearray(8 * _BLOCK + 15)  # the cipher asks for a block more than it writes
    stream = np.frombuffer(scratch, dtype="<i8", count=_BLOCK)
    adding, subtracting = [_keystream(key) for key in plus], [_keystream(key) for key in minus]
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        for cipher in adding:
            cipher.update_into(zeros[: 8 * len(block)], scratch)
            block += stream[: len(block)]
        for cipher in subtracting:
            cipher.update_into(zeros[: 8 * len(block)], scratch)
            block -= stream[: len(block)]


def _keystream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
