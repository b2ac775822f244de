"""Marks by which whoever holds the key knows the sum of certain vectors from everything else that can be made of their ciphertexts.

Ciphertexts that can be added can also be multiplied, left out and changed, by anybody. So each vector x, of numbers modulo a prime t, carries
the mark <r, x> + m, where r is a secret vector that all marks of an attempt share and m a secret number of its own, both derived from a key.
The mark of a sum is the sum of its marks. Whoever does not know the key makes the mark of any other combination than the sum of certain
vectors, each once, with a probability of 1 / 2**32 at the most; there are two marks. Agrawal & Boneh 2009, Homomorphic MACs: MAC-Based
Integrity for Network Coding, section 3.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: Marks of a vector.
MARKS = 2
#: Numbers that are multiplied at once: sums of so many products of 32 and 16 bits are below 2**63.
_BLOCK = 1 << 14
_PIECE = 16


def derived(key: bytes, *purpose: bytes) -> bytes:
    """Return what follows from a key for a purpose, 32 bytes (HMAC-SHA256; each part of the purpose is hashed by itself)."""
    return hmac.digest(key, b"".join(hashlib.sha256(part).digest() for part in purpose), "sha256")


def own_marks(key: bytes, prime: int) -> list[int]:
    """Return the secret numbers that vectors have of their own, from a key of theirs; uniform modulo ``prime``, but for 2**-80."""
    return [int.from_bytes(derived(key, b"mark", bytes([n])), "little") % prime for n in range(MARKS)]


def products(values: npt.NDArray[np.int64], key: bytes, prime: int) -> list[int]:
    """Return the products of a vector with the secret vectors.

    Args:
        values: numbers from 0 to ``prime - 1``, which is below 2**48.
        key: of the secret vectors, 32 bytes; their numbers are below 2**32.
        prime: what the products are taken modulo.
    """
    found = []
    for n in range(MARKS):
        stream, total = Cipher(algorithms.AES256(derived(key, b"products", bytes([n]))), modes.CTR(bytes(16))).encryptor(), 0
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            secret = np.frombuffer(stream.update(bytes(4 * len(block))), dtype="<u4").astype(np.int64)
            for shift in range(0, 48, _PIECE):
                total += int(((block >> shift) & ((1 << _PIECE) - 1)) @ secret) << shift
        found.append(total % prime)
    return found
