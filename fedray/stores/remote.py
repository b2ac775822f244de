"""Places in object stores where a run's files can go: how they are addressed, and the few calls that are made to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from fedray.errors import ConfigError, FedrayError
from fedray.privacy.ledger.location import ObjectPath

#: Seconds to wait for a connection to a store, and for an answer.
TIMEOUTS = (5.0, 10.0)

T = TypeVar("T")


class StoreAway(FedrayError):
    """An object store does not answer, or refuses; the sentence says which and why."""


class Remote:
    """The objects below one prefix of a store. Each call is tried once and fails within bounded time.

    Credentials come from the environment, as the store's own tools find them.
    """

    def __init__(self, address: str) -> None:
        """Make a client; asks the store nothing yet.

        Args:
            address: ``s3://bucket/prefix?endpoint_url=...&region=...`` or ``gs://bucket/prefix?endpoint_url=...``.

        Raises:
            ConfigError: no such address.
        """
        self.address = address
        self._filesystem, self._base = _connect(address)

    def put(self, name: str, data: bytes) -> None:
        """Write an object; it is there as a whole, or not at all."""
        self._try(f"write '{name}'", lambda: self._put(name, data))

    def _put(self, name: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(f"{self._base}/{name}") as stream:
            stream.write(data)

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        return self._try(f"read '{name}'", lambda: self._get(name))

    def _get(self, name: str) -> bytes | None:
        try:
            with self._filesystem.open_input_stream(f"{self._base}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """All objects, in order."""
        from pyarrow.fs import FileSelector, FileType

        everything = FileSelector(self._base, recursive=True, allow_not_found=True)
        found = self._try("list it", lambda: self._filesystem.get_file_info(everything))
        return sorted(each.path.removeprefix(f"{self._base}/") for each in found if each.type == FileType.File)

    def delete(self, name: str) -> None:
        """Remove an object, where it is."""
        self._try(f"remove '{name}'", lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._base}/{name}")

    def _try(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise StoreAway(f"{self.address}: the store could not be reached to {what} ({_reason(error)})") from error


def is_remote(output: str | Path) -> bool:
    """Whether this names a place in an object store."""
    return isinstance(output, str) and "://" in output and not output.startswith("file://")


def canonical(address: str) -> str:
    """An address of a store in the one form under which it is known.

    Raises:
        ConfigError: it is none.
    """
    if address.startswith("s3://"):
        return str(ObjectPath.parse(address, "--output"))
    _connect(address)
    return address.rstrip("/")


def below(address: str, name: str) -> str:
    """The address of an object below another address."""
    front, mark, query = address.partition("?")
    return f"{front.rstrip('/')}/{name}{mark}{query}"


def _connect(address: str) -> tuple[Any, str]:
    """A file system, and the path in it."""
    from pyarrow import fs

    if address.startswith("s3://"):
        path = ObjectPath.parse(address, "--output")
        # As boto3 does, which the ledgers use; pyarrow itself does not read these.
        endpoint = path.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        more = {"endpoint_override": endpoint, "region": path.region, "tls_ca_file_path": os.environ.get("AWS_CA_BUNDLE")}
        if path.region is None and endpoint is not None:  # no use asking a machine at AWS for its region
            more["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        connect, answer = TIMEOUTS
        store = fs.S3FileSystem(
            connect_timeout=connect,
            request_timeout=answer,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
            allow_delayed_open=True,  # one request for a small object
            **{k: v for k, v in more.items() if v is not None},
        )
        return store, f"{path.bucket}/{path.prefix}"
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    server = urlsplit(query.pop("endpoint_url", "https://storage.googleapis.com"))
    prefix = parts.path.strip("/")
    if parts.scheme != "gs" or not parts.netloc or not prefix or "@" in parts.netloc or query or parts.fragment:
        raise ConfigError(
            f"--output {address}: is no address that a run's files can go to; "
            "write s3://bucket/prefix?endpoint_url=...&region=..., gs://bucket/prefix, or a directory."
        )
    patience = timedelta(seconds=sum(TIMEOUTS))
    # A stand-in for the service takes no credentials.
    own = {} if server.netloc == "storage.googleapis.com" else {"anonymous": True}
    return fs.GcsFileSystem(
        retry_time_limit=patience, scheme=server.scheme, endpoint_override=server.netloc, **own
    ), f"{parts.netloc}/{prefix}"


def _reason(error: OSError) -> str:
    """Why the store failed, in a few words."""
    text = " ".join(str(error).split())
    for sign in ("Details: ", "operation: ", "original-message="):
        text = text.rpartition(sign)[2]
    text = text.partition(" (Request ID")[0].rstrip("}). ")
    return text[:160]
