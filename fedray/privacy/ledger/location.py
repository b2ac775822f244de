"""Where books lie: a directory, or a prefix in an object store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fedray.errors import ConfigError, PrivacyRefusal

_SCHEME = "s3://"

#: Ray's directory of unpacked working directories: jobs start there, so relative paths lead into it.
_UNPACKED = "working_dir_files"

#: The code of a refusal of a ledger that a job would forget.
RELATIVE = "privacy.incompatible.job.ledger_relative"


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A prefix in an S3 object store; ``str()`` is its address ``s3://bucket/prefix?endpoint_url=...&region=...``.

    Attributes:
        bucket: the bucket.
        prefix: of the keys, without a slash at either end.
        endpoint_url: of a store that is not AWS's; None: as the environment says.
        region: None: as the environment says.
    """

    bucket: str
    prefix: str
    endpoint_url: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, text: str, setting: str = "privacy.ledger") -> ObjectPath:
        """From an address, given for ``setting``. Keys and passwords have no place in it: they come from the environment.

        Raises:
            ConfigError: no bucket or prefix, or a setting that is not known.
        """
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(set(query) - {"endpoint_url", "region"})
        prefix = parts.path.strip("/")
        if parts.scheme != "s3" or not parts.netloc or not prefix or "//" in parts.path or parts.fragment:
            raise ConfigError(f"{setting}: '{text}' names no place in an object store; write s3://bucket/prefix.")
        if "@" in parts.netloc or unknown:
            what = "a user or password" if "@" in parts.netloc else f"the setting '{unknown[0]}'"
            raise ConfigError(f"{setting}: {what} has no place in an address; it may have endpoint_url and region, and no more.")
        return cls(parts.netloc, prefix, query.get("endpoint_url"), query.get("region"))

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rpartition("/")[2]

    def __truediv__(self, name: str) -> ObjectPath:
        return replace(self, prefix=f"{self.prefix}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        query = urlencode({k: v for k, v in (("endpoint_url", self.endpoint_url), ("region", self.region)) if v is not None}, safe=":/")
        return f"{_SCHEME}{self.bucket}/{self.prefix}" + (f"?{query}" if query else "")


#: Where a book, or a directory of books, lies.
Location = Path | ObjectPath


def location(where: str | Location) -> Location:
    """A path or an address as what it names.

    Raises:
        ConfigError: an address of a kind that cannot hold a ledger.
    """
    if not isinstance(where, str):
        return where
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    if where.startswith(_SCHEME):
        return ObjectPath.parse(where)
    if "://" in where:
        raise ConfigError(
            f"privacy.ledger: '{where}' has neither file locks nor conditional writes that this program knows, so a charge could be lost; "
            "name a directory on a durable volume, or s3://bucket/prefix."
        )
    return Path(where)


def ledger_directory(setting: str, output: str | Path) -> Location:
    """Where ``privacy.ledger`` (or a group's ``ledger``) says the books are: ``run`` is ``ledger`` in the run's output.

    Raises:
        ConfigError: an address of a kind that cannot hold a ledger.
        PrivacyRefusal: a directory that is gone when a job ends, and with it what was charged.
    """
    if setting == "run":
        return Path(output) / "ledger"
    where = location(setting)
    if isinstance(where, Path) and _UNPACKED in where.absolute().parts:
        raise PrivacyRefusal(
            f"privacy.ledger: {setting} would lie where Ray unpacks a job's files, and be gone with them, so that what is charged would be "
            "forgotten; give an absolute path on a durable volume, or s3://bucket/prefix.",
            RELATIVE,
        )
    return where


def records_path(directory: str | Location) -> Location:
    """The driver's book of many clients whose records are the unit, in ``directory``."""
    return location(directory) / "records.jsonl"


def clients_path(directory: str | Location) -> Location:
    """The driver's book of whole clients, in ``directory``."""
    return location(directory) / "clients.jsonl"


def subject_path(directory: str | Location, subject: str) -> Location:
    """One subject's own book in ``directory``; different subjects never share one."""
    name = quote(subject, safe="")
    if name.startswith(".") or name in ("", "records", "clients"):
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) > 180:
        name = f"{name[:100]}-{hashlib.sha256(subject.encode()).hexdigest()}"
    return location(directory) / f"{name}.jsonl"
