"""A client of S3 object stores: get, put, put if absent, list and delete, each tried again while the store is away.

Source: Amazon S3 user guide, "How to prevent object overwrites with conditional writes"
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fedray.errors import StoreError
from fedray.stores.object_path import ObjectPath

#: Seconds for which a call is tried again while the store is away, unless the bucket or the call says otherwise.
PATIENCE = 90.0

#: Seconds to wait for a connection, and for an answer.
TIMEOUTS = (5.0, 10.0)

_PAUSES = (0.1, 2.0)  # seconds between two tries: the first pause, and the longest
_PART = 64 * 2**20  # bytes; larger files are sent in parts of this size, one in memory at a time
_CHUNK = 2**20  # bytes that are read at a time
_ABSENT = ("404", "NoSuchKey")
_TAKEN = ("412", "PreconditionFailed")
#: HTTP statuses after which the same request may succeed; 409 means that another conditional write to the key is under way.
_AGAIN = (409, 429, 500, 502, 503, 504)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

T = TypeVar("T")


class Taken(Exception):
    """The key exists with other bytes, or its object is not the one that was to be replaced."""


class Absent(Exception):
    """There is no object of this key."""


class Bucket:
    """The objects below one prefix; keys are relative to it.

    Every method takes ``patience``, the seconds for which it tries again while the store is away, and raises
    :class:`~fedray.errors.StoreError` if the store stays away that long, or at once if the store refuses.

    Attributes:
        path: the prefix.
    """

    def __init__(self, path: ObjectPath, patience: float | None = None) -> None:
        """Make a client, which sends no request yet. boto3 finds the credentials in the environment.

        Args:
            path: the prefix.
            patience: the default of the methods; None is :data:`PATIENCE`.

        Raises:
            StoreError: boto3 is not installed, or cannot use the region or the endpoint.
        """
        try:
            import boto3
            from boto3.s3.transfer import TransferConfig
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, PartialCredentialsError
            from botocore.parsers import ResponseParserError
        except ImportError:
            raise StoreError(f"{path}: an object store needs boto3; install fedray[s3].") from None
        self.path = path
        self._patience = PATIENCE if patience is None else patience
        self._away: tuple[type[Exception], ...] = (BotoCoreError, ResponseParserError, OSError)
        self._wrong: tuple[type[Exception], ...] = (NoCredentialsError, PartialCredentialsError, ParamValidationError)
        self._refused: type[Exception] = ClientError
        connect, read = TIMEOUTS
        self._parts = TransferConfig(
            multipart_threshold=_PART, multipart_chunksize=_PART, use_threads=False, preferred_transfer_client="classic"
        )
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=path.endpoint_url,
                region_name=path.region,
                config=Config(connect_timeout=connect, read_timeout=read, retries={"total_max_attempts": 1}),
            )
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"{path}: no client for this store ({error}); check the address and the environment of boto3.") from error

    def at(self, path: ObjectPath) -> Bucket:
        """The objects below another prefix of the same store, through the same client."""
        other = copy(self)
        other.path = path
        return other

    def get(self, key: str, patience: float | None = None) -> bytes | None:
        """An object's bytes; None if there is none."""
        found = self.get_tagged(key, patience)
        return None if found is None else found[0]

    def get_tagged(self, key: str, patience: float | None = None) -> tuple[bytes, str] | None:
        """An object's bytes and its entity tag; None if there is none."""

        def get() -> tuple[bytes, str] | None:
            answer = self._request("get_object", key)
            return None if answer is None else (answer["Body"].read(), str(answer["ETag"]))

        return self._persist(get, f"read '{key}'", patience)

    def download(self, key: str, path: Path, patience: float | None = None) -> None:
        """Write an object to a file without holding all of it in memory.

        Raises:
            Absent: there is no such object.
            OSError: the disk is full or broken.
        """

        def download() -> None:
            answer = self._request("get_object", key)
            if answer is None:
                raise Absent(key)
            with path.open("wb") as file:
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    file.write(chunk)

        self._persist(download, f"read '{key}'", patience)

    def put(self, key: str, data: bytes | BinaryIO, patience: float | None = None) -> None:
        """Write an object, over an older one if there is one. Readers see the old or the new object, never a part.

        Args:
            key: of the object.
            data: its bytes, or an open file, which is read in parts and stays open; bytes that are appended meanwhile are left out.
            patience: see the class.
        """

        def put() -> None:
            if isinstance(data, bytes):
                self._request("put_object", key, Body=data)
                return
            data.seek(0)
            with os.fdopen(os.dup(data.fileno()), "rb") as body:  # boto3 closes the file that it is given
                self._client.upload_fileobj(body, self.path.bucket, self._key(key), Config=self._parts)

        self._persist(put, f"write '{key}'", patience)

    def create(self, key: str, data: bytes) -> None:
        """Write an object if there is none of this key (``If-None-Match: *``).

        If the answer to an earlier try was lost, the object is read back: if it holds ``data``, this call wrote it. Callers see
        to it that no two writers write the same bytes.

        Raises:
            Taken: there is one with other bytes.
            StoreError: it is not known whether the object was written.
        """
        try:
            self.claim(key, data, None)
        except Taken:
            if self.get(key) != data:
                raise

    def claim(self, key: str, data: bytes, tag: str | None, patience: float | None = None) -> str:
        """Write an object if there is none (``tag`` None), or replace the one with this entity tag (``If-Match``).

        Returns:
            The new entity tag.

        Raises:
            Taken: there is one, or it has another tag, or it is gone.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}

        def put() -> str:
            answer = self._request("put_object", key, Body=data, **condition)
            if answer is None:
                raise Taken(key)
            return str(answer["ETag"])

        return self._persist(put, f"write '{key}'", patience)

    def delete(self, key: str, tag: str | None = None, patience: float | None = None) -> None:
        """Remove an object if it is there, and with ``tag`` only if it has this entity tag."""

        def delete() -> None:
            with suppress(Taken):  # another writer's object stays
                self._request("delete_object", key, **({} if tag is None else {"IfMatch": tag}))

        self._persist(delete, f"remove '{key}'", patience)

    def names(self, patience: float | None = None) -> list[str]:
        """The keys below the prefix, in order."""
        return self._list("", "Contents", "Key", patience)

    def folders(self, patience: float | None = None) -> list[str]:
        """The first parts of the keys below the prefix that have several parts, in order."""
        return [name.rstrip("/") for name in self._list("/", "CommonPrefixes", "Prefix", patience)]

    def _list(self, delimiter: str, what: str, field: str, patience: float | None) -> list[str]:
        start = self._key("")
        pages = self._client.get_paginator("list_objects_v2")

        def names() -> list[str]:
            found = pages.paginate(Bucket=self.path.bucket, Prefix=start, Delimiter=delimiter)
            return sorted(item[field].removeprefix(start) for page in found for item in page.get(what, ()))

        return self._persist(names, "list it", patience)

    def _key(self, key: str) -> str:
        return (self.path / key).prefix

    def _request(self, operation: str, key: str, **parameters: Any) -> Any:
        """Send one request for one object; returns None if there is no such object."""
        try:
            return getattr(self._client, operation)(Bucket=self.path.bucket, Key=self._key(key), **parameters)
        except self._refused as error:
            if _code(error) in _ABSENT:
                return None
            if _code(error) in _TAKEN:
                raise Taken(key) from error
            raise

    def _persist(self, call: Callable[[], T], what: str, patience: float | None) -> T:
        """The call's result; the call is repeated for ``patience`` seconds while the store is away."""
        end = time.monotonic() + (self._patience if patience is None else patience)
        pause, longest = _PAUSES
        while True:
            try:
                return call()
            except self._refused as error:
                if _status(error) not in _AGAIN and _code(error) != "RequestTimeout":
                    raise StoreError(
                        f"{self.path}: the store refused to {what} ({error}); check the bucket and the rights to it."
                    ) from error
                reason: Exception = error
            except self._wrong as error:
                raise StoreError(f"{self.path}: cannot be reached to {what} ({error}); check the address and the credentials.") from error
            except self._away as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                reason = error
            if time.monotonic() + pause >= end:
                raise StoreError(
                    f"{self.path}: the store could not be reached to {what} ({reason}); check the address, the credentials and the network."
                ) from reason
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    return int(getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
