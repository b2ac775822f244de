"""The few calls that a ledger makes to an S3 store, each tried again while the store is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fedray.errors import LedgerError
from fedray.privacy.ledger.location import ObjectPath

#: Seconds for which a store may be away before a writer gives up and training stops.
PATIENCE = 90.0

#: Seconds to wait for a connection, and for an answer.
TIMEOUTS = (5.0, 10.0)

_PAUSES = (0.1, 2.0)
_GONE = ("404", "NoSuchKey")
_TAKEN = ("412", "PreconditionFailed")
#: What a store says when the same request may succeed later; 409 is another conditional write to the key under way.
_AGAIN = (409, 429, 500, 502, 503, 504)

T = TypeVar("T")


class Taken(Exception):
    """The key exists with other bytes, or its object is not the one that was to be replaced."""


class Bucket:
    """The objects below one prefix; keys are given without it."""

    def __init__(self, path: ObjectPath) -> None:
        """Make a client. Credentials come from the environment, as boto3 finds them.

        Raises:
            LedgerError: boto3 is not installed, or has no region or endpoint that it understands.
        """
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, PartialCredentialsError
            from botocore.parsers import ResponseParserError
        except ImportError:
            raise LedgerError(f"{path}: a ledger in an object store needs boto3; install fedray[s3].") from None
        self.path = path
        self._away: tuple[type[Exception], ...] = (BotoCoreError, ResponseParserError, OSError)
        self._wrong: tuple[type[Exception], ...] = (NoCredentialsError, PartialCredentialsError, ParamValidationError)
        self._refused: type[Exception] = ClientError
        connect, read = TIMEOUTS
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=path.endpoint_url,
                region_name=path.region,
                config=Config(connect_timeout=connect, read_timeout=read, retries={"total_max_attempts": 1}),
            )
        except (BotoCoreError, ValueError) as error:
            raise LedgerError(f"{path}: no client for this store ({error}); check the address and the environment of boto3.") from error

    def get(self, key: str, patience: float | None = None) -> bytes | None:
        """An object's bytes; None where there is none."""
        found = self.get_tagged(key, patience)
        return None if found is None else found[0]

    def get_tagged(self, key: str, patience: float | None = None) -> tuple[bytes, str] | None:
        """An object's bytes and its entity tag; None where there is none."""

        def get() -> tuple[bytes, str] | None:
            try:
                answer = self._client.get_object(Bucket=self.path.bucket, Key=self.path.prefix + key)
                return answer["Body"].read(), str(answer["ETag"])
            except self._refused as error:
                if _code(error) in _GONE:
                    return None
                raise

        return self._persist(get, f"read '{key}'", patience)

    def create(self, key: str, data: bytes) -> None:
        """Make an object where none may be.

        An answer that was lost is settled by reading the object back: if it holds ``data``, it is ours. Callers see to it that
        no two writers write the same bytes.

        Raises:
            Taken: there is one with other bytes.
            LedgerError: it is not known to be there; it may be all the same.
        """
        try:
            self._put(key, data, None, IfNoneMatch="*")
        except Taken:
            if self.get(key) != data:
                raise

    def claim(self, key: str, data: bytes, tag: str | None, patience: float | None = None) -> str:
        """Make an object (``tag`` None), or put another in the place of the one with this entity tag; returns the new tag.

        Raises:
            Taken: there is one, or it is another one.
            LedgerError: the store could not be reached.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        return self._put(key, data, patience, **condition)

    def _put(self, key: str, data: bytes, patience: float | None, **condition: str) -> str:
        def put() -> str:
            try:
                answer = self._client.put_object(Bucket=self.path.bucket, Key=self.path.prefix + key, Body=data, **condition)
                return str(answer["ETag"])
            except self._refused as error:
                if _code(error) in (*_TAKEN, *(_GONE if "IfMatch" in condition else ())):
                    raise Taken from error
                raise

        return self._persist(put, f"write '{key}'", patience)

    def delete(self, key: str, tag: str, patience: float | None = None) -> None:
        """Remove the object with this entity tag; another one stays."""

        def delete() -> None:
            try:
                self._client.delete_object(Bucket=self.path.bucket, Key=self.path.prefix + key, IfMatch=tag)
            except self._refused as error:
                if _code(error) not in (*_GONE, *_TAKEN):
                    raise

        self._persist(delete, f"remove '{key}'", patience)

    def keys(self, below: str) -> list[str]:
        """Keys that begin with ``below``, in order."""
        start = self.path.prefix + below

        def keys() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.path.bucket, Prefix=start)
            return sorted(item["Key"].removeprefix(self.path.prefix) for page in pages for item in page.get("Contents", ()))

        return self._persist(keys, "list it", None)

    def folders(self, below: str) -> list[str]:
        """Names of the next level of keys that begin with ``below``, in order."""
        start = self.path.prefix + below

        def folders() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.path.bucket, Prefix=start, Delimiter="/")
            found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
            return sorted(name.removeprefix(start).rstrip("/") for name in found)

        return self._persist(folders, "list it", None)

    def _persist(self, call: Callable[[], T], what: str, patience: float | None) -> T:
        """The call's result, trying again for ``patience`` seconds (:data:`PATIENCE`) while the store is away."""
        end = time.monotonic() + (PATIENCE if patience is None else patience)
        pause, longest = _PAUSES
        while True:
            try:
                return call()
            except self._refused as error:
                if _status(error) not in _AGAIN and _code(error) != "RequestTimeout":
                    raise LedgerError(
                        f"{self.path}: the store refused to {what} ({error}); check the bucket and the rights to it."
                    ) from error
                reason: Exception = error
            except self._wrong as error:
                raise LedgerError(f"{self.path}: cannot be reached to {what} ({error}); check the address and the credentials.") from error
            except self._away as error:
                reason = error
            if time.monotonic() + pause >= end:
                raise LedgerError(
                    f"{self.path}: the store could not be reached to {what} ({reason}); bring it back, then start again."
                ) from reason
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    return int(getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
