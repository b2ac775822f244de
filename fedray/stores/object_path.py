"""Addresses of directories and of prefixes in S3 object stores, for a run's files and for privacy ledgers alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from fedray.errors import ConfigError

_GOOGLE = (
    "; Google Cloud Storage is reached through its S3-compatible endpoint: write s3://bucket/prefix?endpoint_url=https://storage.googleapis.com "
    "and put an HMAC key into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A prefix in an S3 object store. ``str()`` gives its address, ``s3://bucket/prefix?endpoint_url=...&region=...``.

    Attributes:
        bucket: the bucket.
        prefix: what the keys begin with, without a slash at either end.
        endpoint_url: URL of a store other than AWS's; None takes it from the environment.
        region: None takes it from the environment.
    """

    bucket: str
    prefix: str
    endpoint_url: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, text: str, setting: str = "privacy.ledger") -> ObjectPath:
        """Read an address. Credentials are not part of it: they come from the environment.

        Args:
            text: the address.
            setting: the option that it was given for, which errors name.

        Raises:
            ConfigError: the address has no bucket or no prefix, holds credentials, or holds an unknown query parameter.
        """
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "@" in parts.netloc or "@" in urlsplit(query.get("endpoint_url", "")).netloc:
            raise ConfigError(f"{setting}: a user or password has no place in an address; credentials come from the environment.")
        prefix = parts.path.strip("/")
        if parts.scheme != "s3" or not parts.netloc or not prefix or "//" in parts.path or parts.fragment:
            raise ConfigError(f"{setting}: '{text}' names no place in an object store; write s3://bucket/prefix.")
        unknown = sorted(set(query) - {"endpoint_url", "region"})
        if unknown:
            raise ConfigError(
                f"{setting}: the setting '{unknown[0]}' has no place in an address; it may have endpoint_url and region only."
            )
        return cls(parts.netloc, prefix, query.get("endpoint_url"), query.get("region"))

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """The prefix without its last part."""
        return replace(self, prefix=self.prefix.rpartition("/")[0])

    def __truediv__(self, name: str) -> ObjectPath:
        return replace(self, prefix=f"{self.prefix}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        query = urlencode({k: v for k, v in (("endpoint_url", self.endpoint_url), ("region", self.region)) if v is not None}, safe=":/")
        return f"s3://{self.bucket}/{self.prefix}" + (f"?{query}" if query else "")


#: A directory or file, or a prefix in an object store.
Location = Path | ObjectPath


def location(where: str | Location, setting: str = "privacy.ledger") -> Location:
    """Read a path, a ``file://`` URL or an ``s3://`` address.

    Args:
        where: the text; a location is returned as it is.
        setting: the option that it was given for, which errors name.

    Raises:
        ConfigError: an address of another scheme, or one that :meth:`ObjectPath.parse` refuses.
    """
    if not isinstance(where, str):
        return where
    scheme, mark, rest = where.partition("://")
    if not mark or scheme == "file":
        return Path(rest if mark else where)
    if scheme == "s3":
        return ObjectPath.parse(where, setting)
    raise ConfigError(
        f"{setting}: fedray has neither file locks nor conditional writes for {scheme}:// addresses, so a charge or a file could be lost; "
        f"name a directory on a durable volume, or s3://bucket/prefix?endpoint_url=...&region=...{_GOOGLE if scheme == 'gs' else ''}."
    )
