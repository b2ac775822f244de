"""A commitment to a client's training records: a salted Merkle root, which reveals nothing about them but against which they can be checked.

The root is in the ledger beside each charge. An auditor who later receives a record with its proof can check that the record was among the
training records; from a client that shows all records, also that there were no others. Without the salt, the root cannot even confirm a
guessed record. A proof reveals the salt of its own record only.

Source: Merkle 1987, A Digital Signature Based on a Conventional Encryption Function; RFC 6962, section 2.1 (shape of the tree, prefixes
that distinguish leaves from inner nodes)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from fedray.errors import DataError
from fedray.secure.merkle import NODE, leaf_hash, parents, root_of
from fedray.storage import sync_directory
from fedray.stores.object_path import Location
from fedray.stores.s3 import Bucket, Taken

SALT_BYTES = 32

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Proof:
    """The proof that one record is under a root.

    Attributes:
        salt: salt of this record (hex).
        position: of the record's leaf among all leaves, which lie in ascending order; from 0.
        path: from the leaf upwards, the hash of each node's sibling (hex). Position and number of leaves say which siblings there are.
    """

    salt: str
    position: int
    path: tuple[str, ...]


class MerkleTree:
    """The tree over all records, with its proofs; for the root alone see :func:`commit_records`, which also names arguments and errors."""

    def __init__(self, x: Array, y: Array, salt: bytes) -> None:
        leaves = _leaves(x, y, salt)
        self._order = sorted(range(len(leaves)), key=lambda i: leaves[i][0])
        self._salts = [own for _, own in leaves]
        self._rows = [[leaves[i][0] for i in self._order]]
        while len(self._rows[-1]) > 1:
            self._rows.append(parents(self._rows[-1]))

    @property
    def root(self) -> str:
        """The root, 64 hex digits."""
        return root_of(self._rows[-1])

    def record(self, position: int) -> int:
        """Index of the record whose leaf is at a position. Equal records have leaves side by side, each its own.

        Raises:
            DataError: there is no such position.
        """
        if not 0 <= position < len(self._order):
            raise DataError(f"a proof was asked for position {position} of {len(self._order)}; positions count from 0.")
        return self._order[position]

    def prove(self, position: int) -> Proof:
        """The proof for the record at a position; raises as :meth:`record`."""
        own, at, path = self._salts[self.record(position)], position, list[str]()
        for row in self._rows[:-1]:
            if at ^ 1 < len(row):
                path.append(row[at ^ 1].hex())
            at //= 2
        return Proof(own.hex(), position, tuple(path))


def commit_records(x: Array, y: Array, salt: bytes) -> str:
    """The root over all records. It does not depend on their order; equal records count several times.

    Args:
        x: ``[n, ...]`` features of any fixed-size dtype.
        y: ``[n, ...]`` targets of any fixed-size dtype.
        salt: 32 secret bytes (see :func:`load_salt`); other salts give unrelated roots.

    Returns:
        64 hex digits.

    Raises:
        DataError: an array holds Python objects, or the arrays differ in length.
    """
    return root_of(sorted(leaf for leaf, _ in _leaves(x, y, salt)))


def content_of(x: Array, y: Array) -> bytes:
    """SHA-256 of one record: its dtypes and shapes, followed by its bytes.

    Args:
        x: features of the record without the leading axis, in the committed dtype.
        y: targets of the record, likewise.
    """
    return _contents(np.asarray(x)[None], np.asarray(y)[None])[0]


def check(root: str, records: int, content: bytes, proof: Proof) -> bool:
    """Whether the leaf at a proof's position is that of one record.

    Args:
        root: result of :func:`commit_records`.
        records: number of records under the root.
        content: result of :func:`content_of`.
        proof: result of :meth:`MerkleTree.prove`.
    """
    try:
        own, path = bytes.fromhex(proof.salt), [bytes.fromhex(each) for each in proof.path]
    except ValueError:
        return False
    node, at, row = _leaf(own, content), proof.position, records
    if not 0 <= at < row or len(own) != SALT_BYTES or len(content) != hashlib.sha256().digest_size:
        return False
    while row > 1:
        if at ^ 1 < row:
            if not path:
                return False
            other = path.pop(0)
            node = hashlib.sha256(NODE + (other + node if at % 2 else node + other)).digest()
        at, row = at // 2, (row + 1) // 2
    return not path and hmac.compare_digest(node.hex(), root)


def mark_of(salt: bytes) -> str:
    """SHA-256 of a salt (hex), by which it is recognised and from which it cannot be computed."""
    return hashlib.sha256(b"fedray salt" + salt).hexdigest()


def load_salt(directory: Location, book: str) -> bytes:
    """The secret salt of a ledger's commitments, kept beside the ledger and created if there is none.

    No record can be proven without it. A file is readable by its owner only; in an object store, everyone who may read the store may read
    the salt.

    Args:
        directory: directory of the ledger.
        book: name of the ledger's subject, or ``records`` for the driver's ledger.

    Returns:
        32 bytes from the operating system.

    Raises:
        DataError: the salt cannot be written, or is damaged.
        StoreError: the object store cannot be reached.
    """
    salt = find_salt(directory, book)
    if salt is None:
        where, made = _salt_path(directory, book), os.urandom(SALT_BYTES)
        if isinstance(where, Path):
            with _keeping(where):
                _create(where, made)
        else:
            with suppress(Taken):
                Bucket(where.parent).create(where.name, made)
        salt = find_salt(directory, book)  # another process may have written its salt first
        if salt is None:
            raise DataError(f"{where}: the salt of the data commitments is missing after it was written; restore it.")
    return salt


def find_salt(directory: Location, book: str) -> bytes | None:
    """The salt of a ledger, as :func:`load_salt`; None if there is none, as for a ledger without commitments."""
    where = _salt_path(directory, book)
    if isinstance(where, Path):
        with _keeping(where):
            salt = where.read_bytes() if where.exists() else None
    else:
        salt = Bucket(where.parent).get(where.name)
    if salt is not None and len(salt) != SALT_BYTES:
        raise DataError(f"{where}: holds {len(salt)} bytes instead of a salt of {SALT_BYTES}; restore the right one.")
    return salt


def _salt_path(directory: Location, book: str) -> Location:
    return directory / f"{quote(book, safe='')}.salt"


@contextmanager
def _keeping(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: the salt of the data commitments cannot be kept ({error.strerror or error}); mount the volume."
        ) from error


def _create(path: Path, data: bytes) -> None:
    """Write a new file as a whole, unless another process has made it first."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _leaves(x: Array, y: Array, salt: bytes) -> list[tuple[bytes, bytes]]:
    """Each record's leaf and salt; the salt is a pseudo-random function of the record, keyed by the ledger's salt."""
    if len(salt) != SALT_BYTES:
        raise DataError(f"the salt of a data commitment has {SALT_BYTES} bytes, not {len(salt)}.")
    leaves = []
    for content in _contents(x, y):
        own = hmac.digest(salt, content, "sha256")
        leaves.append((_leaf(own, content), own))
    return leaves


def _leaf(own: bytes, content: bytes) -> bytes:
    return leaf_hash(own + content)


def _contents(x: Array, y: Array) -> list[bytes]:
    """SHA-256 of each record's dtypes and shapes, followed by its little-endian bytes."""
    if len(x) != len(y):
        raise DataError(f"a data commitment was asked for {len(x)} features with {len(y)} targets; give each record both.")
    x, y = (_plain(name, array) for name, array in (("features", x), ("targets", y)))
    head = hashlib.sha256(json.dumps([x.dtype.str, x.shape[1:], y.dtype.str, y.shape[1:]]).encode() + b"\n")
    contents = []
    for features, targets in zip(_rows(x), _rows(y), strict=True):
        digest = head.copy()
        digest.update(features)
        digest.update(targets)
        contents.append(digest.digest())
    return contents


def _plain(name: str, array: Array) -> Array:
    if array.dtype.hasobject:
        raise DataError(f"the {name} are Python objects, which have no fixed bytes to commit to; give arrays of numbers.")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _rows(array: Array) -> Array:
    """The bytes of each row, ``[n, bytes of a row]`` uint8, without a copy."""
    size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    return np.frombuffer(array, dtype=np.uint8).reshape(len(array), size) if array.size else np.empty((len(array), 0), dtype=np.uint8)
