"""Merkle trees: one hash for a list of leaves, in which no leaf can be changed, left out or moved.

Source: RFC 6962, section 2.1 (shape of the tree, prefixes that distinguish leaves from inner nodes, the tree of no leaves)
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

LEAF, NODE = b"\x00", b"\x01"


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of one leaf, 32 bytes."""
    return sha256(LEAF + leaf).digest()


def parents(row: Sequence[bytes]) -> list[bytes]:
    """The row of nodes above a row; a node without a neighbour moves up as it is."""
    pairs = [sha256(NODE + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)]
    return pairs + list(row[len(pairs) * 2 :])


def root_of(row: Sequence[bytes]) -> str:
    """The root over the hashes of leaves, 64 hex digits."""
    while len(row) > 1:
        row = parents(row)
    return (row[0] if row else sha256(b"").digest()).hex()
