"""Randomness for privacy: DP noise and DP sampling coins.

Both come from a cryptographic stream that cannot be replayed. :class:`InsecureSeeded` has the same interface but can be replayed; it
is for tests and voids the claim.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from fedray import rng

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_UNIT = 2.0**-53


class Csprng:
    """AES-256-CTR keystream under a key from ``os.urandom``.

    Only the cipher holds the key. The object cannot be pickled or copied, and its ``repr`` reveals no state. Make a new object for every
    round and attempt. After a ``fork`` the child takes a new key, because parent and child would otherwise draw the same noise.
    """

    secure: bool = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rekey()

    def _rekey(self) -> None:
        self._pid = os.getpid()
        self._cipher: CipherContext = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def u64(self, n: int) -> Words:
        """``n`` uniform 64-bit words, uint64, read-only."""
        with self._lock:
            if os.getpid() != self._pid:
                self._rekey()
            stream = self._cipher.update(bytes(8 * n))
        return np.frombuffer(stream, dtype="<u8")

    def _bits53(self, n: int) -> Words:
        return self.u64(n) >> np.uint64(11)

    def uniform(self, n: int) -> Floats:
        """``n`` values in [0, 1): multiples of 2**-53, float64."""
        return self._bits53(n).astype(np.float64) * _UNIT

    def normal(self, n: int) -> Floats:
        """``n`` standard normal values, float64.

        Source: Box & Muller 1958, A Note on the Generation of Random Normal Deviates
        """
        half = (n + 1) // 2
        u = self._bits53(2 * half).astype(np.float64)
        u += 0.5  # never 0, so the logarithm is finite
        u *= _UNIT
        radius, angle = u[:half], u[half:]
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * np.pi
        values = np.empty(2 * half)
        turns = torch.from_numpy(angle)  # torch's sines are vectorised and equally accurate
        np.multiply(turns.cos().numpy(), radius, out=values[:half])
        np.multiply(turns.sin().numpy(), radius, out=values[half:])
        return values[:n]

    def coins(self, n: int, q: float) -> Indices:
        """Ascending indices of the heads among ``n`` independent coins with probability ``q`` of heads, int64."""
        return np.flatnonzero(self.uniform(n) < q)

    def __repr__(self) -> str:
        return "Csprng()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Csprng holds the key of privacy noise and cannot be pickled or copied; make a new one where it is needed.")


class InsecureSeeded:
    """The interface of :class:`Csprng` on a generator keyed by (seed, round, client), for tests only; it voids the claim."""

    secure: bool = False

    def __init__(self, seed: int, round: int, client: str | int) -> None:
        self._generator = rng.generator(seed, "insecure-dp", round, client)

    def u64(self, n: int) -> Words:
        """``n`` uniform 64-bit words, uint64."""
        return self._generator.integers(0, 1 << 64, size=n, dtype=np.uint64)

    def uniform(self, n: int) -> Floats:
        """``n`` values in [0, 1), float64."""
        return self._generator.random(n)

    def normal(self, n: int) -> Floats:
        """``n`` standard normal values, float64."""
        return self._generator.standard_normal(n)

    def coins(self, n: int, q: float) -> Indices:
        """Ascending indices of the heads among ``n`` coins with probability ``q`` of heads, int64."""
        return np.flatnonzero(self.uniform(n) < q)

    def __repr__(self) -> str:
        return "InsecureSeeded()"


def noise_source(insecure_seed: int | None, round: int, client: str | int) -> Csprng | InsecureSeeded:
    """A new source for one client and round; cryptographic, unless the config sets the insecure seed of tests."""
    return Csprng() if insecure_seed is None else InsecureSeeded(insecure_seed, round, client)
