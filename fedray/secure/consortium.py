"""The file of a consortium's secret key for encrypted sums: on each client's machine the same, and nowhere else.

A line that says what it is, 32 bytes from which members' marks and confirmations are derived, and the secret key of the scheme with its
parameters, as TenSEAL writes them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from fedray.errors import ConfigError
from fedray.secure.ciphertexts import Scheme, tenseal
from fedray.secure.keyfiles import read_guarded, write_secret

_SECRET = 32


@dataclass(frozen=True)
class ConsortiumKey:
    """The key of a consortium, in a client's process; it cannot be pickled.

    Attributes:
        context: of TenSEAL, with the secret key.
        secret: from which marks and confirmations are derived, 32 bytes.
    """

    context: Any = field(repr=False)
    secret: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a consortium's key does not leave the client's process.")


def make_consortium_key(scheme: Scheme, path: Path) -> None:
    """Write a new key to a new file that only its owner may read.

    Raises:
        FedrayError: the file exists or cannot be written.
        ConfigError: TenSEAL is not installed.
    """
    written = scheme.context().serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    write_secret(
        path, _head(scheme) + secrets.token_bytes(_SECRET) + written, "", "clients that hold the old key could not read sums any more"
    )


@cache
def read_consortium_key(scheme: type[Scheme], path: str) -> ConsortiumKey:
    """Return the key in a file.

    Raises:
        ConfigError: it cannot be read, others may read it, it is no key of the scheme, or TenSEAL is not installed.
    """
    library, file, head = tenseal(scheme.name), Path(path).expanduser(), _head(scheme)
    data = read_guarded("secure.key", file, 0o077, "set it to 0600, and make a new key if others have read it")
    if not data.startswith(head):
        raise ConfigError(f"secure.key: {file} is no key for secure.kind={scheme.name}; fedray encryption-key makes one.")
    try:
        context = library.context_from(data[len(head) + _SECRET :], 1)
        private = context.is_private()
    except (RuntimeError, ValueError):
        private = False
    if not private:
        raise ConfigError(f"secure.key: {file} is damaged; copy it anew from another client of the consortium.")
    return ConsortiumKey(context, data[len(head) : len(head) + _SECRET])


def _head(scheme: Scheme | type[Scheme]) -> bytes:
    return f"fedray consortium key 1 {scheme.name}\n".encode()
