"""Files of identities: each client's private key, and the list of all clients' public keys that its operator has agreed to.

Both are read in the client's process, from its machine. The private key stays there: a :class:`fedray.secure.signing.Signer` cannot be pickled.
"""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from fedray.errors import ConfigError
from fedray.secure.keyfiles import check_absolute, read_guarded, write_secret
from fedray.secure.signing import PUBLIC, Signer

_CLIENT = "{client}"


def check_paths(identities: str, key: str) -> None:
    """Refuse paths that cannot mean the same file whatever a process's working directory is, or one without the other.

    Raises:
        ConfigError: with what to change.
    """
    if bool(identities) != bool(key):
        given, missing = ("identities", "key") if identities else ("key", "identities")
        raise ConfigError(
            f"secure.{missing}: missing, though secure.{given} is set; a client signs by its key, and checks others by the list."
        )
    for name, path in (("identities", identities), ("key", key)):
        if path:
            check_absolute(f"secure.{name}", path)


def read_signer(client: str, identities: str, key: str) -> Signer:
    """Return a client's identity.

    Args:
        client: its name.
        identities: path of the list, a JSON object of clients' names and public keys, the latter as 64 hexadecimal digits.
        key: path of the client's private key, in which ``{client}`` stands for its name.

    Raises:
        ConfigError: a file cannot be read, is malformed or open to others, or the two do not belong together.
    """
    listed, path = _read_list(Path(identities).expanduser()), path_for(client, key)
    own = read_key(path)
    if client not in listed:
        raise ConfigError(
            f"secure.identities: {identities} lists no key for client '{client}'; add its line, which fedray identity prints."
        )
    if listed[client] != own.public_key().public_bytes_raw():
        raise ConfigError(
            f"secure.key: {path} is not the key that {identities} lists for client '{client}'; one of them is another client's, or old."
        )
    return Signer(own, frozenset(listed.values()))


def path_for(client: str, path: str, key: str = "secure.key") -> Path:
    """A path in which ``{client}`` stands for a client's name.

    Raises:
        ConfigError: the name is no file name.
    """
    if _CLIENT in path and Path(client).name != client:
        raise ConfigError(f"{key}: the name of client '{client}' is no file name, so {_CLIENT} cannot stand for it.")
    return Path(path.replace(_CLIENT, client)).expanduser()


def make_key(path: Path) -> str:
    """Make an identity: write its private key to a new file that only its owner may read; returns the public key in hexadecimal digits.

    Raises:
        FedrayError: the file exists or cannot be written.
    """
    own = Ed25519PrivateKey.generate()
    written = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(path, written, "identity: ", "whoever lost the old key could not be known again")
    return own.public_key().public_bytes_raw().hex()


def read_key(path: Path, about: str = "secure.key") -> Ed25519PrivateKey:
    """Read a private key that only its owner may read.

    Args:
        path: of the file.
        about: what errors begin with, such as the config key that names the file.

    Raises:
        ConfigError: it cannot be read, is open to others, or holds no such key.
    """
    should = "nobody but its owner may use it, so set it to 0600, and make a new key if others have read it"
    data = read_guarded(about, path, 0o077, should)
    try:
        own = load_pem_private_key(data, None)
    except (ValueError, TypeError):  # of the latter kind where it is encrypted
        own = None
    if not isinstance(own, Ed25519PrivateKey):
        raise ConfigError(f"{about}: {path} holds no Ed25519 private key in PEM without a password; fedray identity makes one.")
    return own


def _read_list(path: Path) -> dict[str, bytes]:
    data = read_guarded("secure.identities", path, 0o022, "others could put keys of their own into it, so set it to 0644")
    try:
        listed = {str(name): bytes.fromhex(digits) for name, digits in json.loads(data).items()}
    except (ValueError, TypeError, AttributeError):
        listed = {}
    if not listed or any(len(public) != PUBLIC for public in listed.values()):
        raise ConfigError(
            f"secure.identities: {path} is no JSON object of clients' names and public keys of {2 * PUBLIC} hexadecimal digits."
        )
    if len(set(listed.values())) < len(listed):
        raise ConfigError(f"secure.identities: {path} lists one key for two clients, which could then be one.")
    return listed
