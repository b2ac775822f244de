"""The secret salts of data commitments, each kept beside the book that the commitments are in."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from fedray.data.commitment import SALT_BYTES
from fedray.data.commitment import load_salt as load_file
from fedray.errors import LedgerError
from fedray.stores.object_path import Location
from fedray.stores.s3 import Bucket, Taken


def find_salt(directory: Location, book: str) -> bytes | None:
    """The salt of a book, as :func:`load_salt`; None if there is none, as for a book without commitments."""
    name = _name(book)
    there = (directory / name).exists() if isinstance(directory, Path) else Bucket(directory).get(name) is not None
    return load_salt(directory, book) if there else None


def load_salt(directory: Location, book: str) -> bytes:
    """The salt of a book; made if there is none.

    Args:
        directory: of the books; in an object store, everybody who may read the store may read the salt.
        book: a subject's name, or ``records`` for the driver's book.

    Raises:
        DataError: the file cannot be made, or holds something else.
        LedgerError: the object holds something else.
        StoreError: the store cannot be reached.
    """
    name = _name(book)
    if isinstance(directory, Path):
        directory.mkdir(exist_ok=True)
        return load_file(directory / name)
    bucket = Bucket(directory)
    salt = bucket.get(name)
    if salt is None:
        salt = os.urandom(SALT_BYTES)
        try:
            bucket.create(name, salt)
        except Taken:
            salt = bucket.get(name)
    if salt is None or len(salt) != SALT_BYTES:
        raise LedgerError(f"{directory / name}: is not a salt of {SALT_BYTES} bytes; bring the right object back.")
    return salt


def _name(book: str) -> str:
    return f"{quote(book, safe='')}.salt"
