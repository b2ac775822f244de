"""Keyed random generators: every draw that is not for privacy.

A draw is named by (seed, purpose, round, client, ...), never by its position in a stream, so
it is the same on any actor, in any order, after any retry. DP noise and DP sampling must not
come from here: see :mod:`fedray.privacy.csprng`.
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = str | int


def derive(seed: int, purpose: str, *keys: Key) -> int:
    """A 128-bit integer that depends on every part of the name (BLAKE2b of an unambiguous coding)."""
    return int.from_bytes(_digest(seed, purpose, keys), "little")


def _digest(seed: int, purpose: str, keys: tuple[Key, ...]) -> bytes:
    text = "\x1f".join([str(int(seed)), purpose, *[f"{type(k).__name__}:{k}" for k in keys]])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, purpose: str, *keys: Key) -> np.random.Generator:
    """A NumPy generator (PCG64) for one named draw."""
    digest = _digest(seed, purpose, keys)
    words = np.frombuffer(digest, dtype="<u4")
    # The words of the integer, as NumPy would take it apart: the same generator in half the time.
    entropy = words.astype(np.uint32) if words[-1] else int.from_bytes(digest, "little")
    return np.random.Generator(np.random.PCG64(entropy))


def torch_seed(seed: int, purpose: str, *keys: Key) -> int:
    """A seed for ``torch.manual_seed``; torch's CPU generator keeps 32 bits of it."""
    return derive(seed, purpose, *keys) & 0xFFFFFFFF
