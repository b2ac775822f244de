"""Secrets by reference, and the token of a Ray cluster.

Everybody who may read the dashboard sees the environment of a Ray job. So a job carries only the path of a secret on the nodes
(``FEDRAY_SECRETS``, JSON: name to ``file:PATH``); each process that needs the secret reads it there.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

from fedray.errors import ConfigError, FedrayError

#: Environment variable with the references.
SECRETS = "FEDRAY_SECRETS"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SUSPECT = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s@:]*:[^/\s@]+@")
_USER = re.compile(r"(?<=://)(?P<user>[^/\s@:]*:)?(?P<secret>[^/\s@]+)@")
#: A name begins where its letters do; without that, each letter of a long value would be tried as the beginning of one.
_NAMED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]*(?:keys?|secrets?|tokens?|passwd|passwords?|passphrase|credentials?|signature))(?P<sign>=|[\"']?:[ \t]*)(?P<value>[^\s&,;}]+)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"-?[\d._eE+-]+|true|false|null|none|file:.*|\*\*\*", re.IGNORECASE)


#: Patterns of secrets. The header of a private key matches only before the end of a line, also of a line in a JSON string.
_LOOKS = {
    "a private key": rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*(?:[\r\n]|\\[rn]|\Z|[A-Za-z0-9+/=]{16})"
    rb"|---- BEGIN SSH2 \w+ PRIVATE KEY ----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1[0-9A-Z]{20}|client-key-data:\s*[A-Za-z0-9+/=]{40}",
    "a key of AWS": rb"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"
    rb"|(?i:secret_?access_?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "an access token": rb"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22}|glpat-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}"
    rb"|xox[abeoprs]-[A-Za-z0-9-]{20}|AIza[A-Za-z0-9_-]{35}|pypi-AgEI[A-Za-z0-9_-]{20}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10})",
    "a password": rb"(?m:^[^\S\n]*machine\s+\S+\s+login\s+\S+\s+password\s+\S)",
}
_KEYS = {kind: re.compile(pattern) for kind, pattern in _LOOKS.items()}


def looks_secret(data: bytes) -> str | None:
    """Return which kind of secret a text or a file looks like (a private key, an access token, ...); None if it looks like none."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        data = data.replace(b"\0", b"")
    return next((kind for kind, words in _KEYS.items() if words.search(data)), None)


def cleaned(text: str) -> str:
    """Return a command line, a setting or a config without secrets, for places that others read.

    Replaced by ``***``: who logs in at an address (of ``user:password`` only the password), the value of a name that ends like ``token``
    or ``api_key`` unless it is a number or a reference, and each line that holds what :func:`looks_secret` recognises.
    """
    return "\n".join(_cleaned_line(line) for line in text.split("\n"))


def cleaned_value(name: str, value: str) -> str:
    """Return the value of a setting without secrets; see :func:`cleaned`."""
    front = f"{name}="
    return cleaned(front + value).removeprefix(front)


def _cleaned_line(line: str) -> str:
    if looks_secret(line.encode()):
        return "***"
    line = _USER.sub(lambda found: f"{found['user'] or ''}***@", line)
    return _NAMED.sub(lambda found: found[0] if _HARMLESS.fullmatch(found["value"]) else f"{found['name']}{found['sign']}***", line)


def load() -> None:
    """Put each referenced secret into this process' environment.

    Raises:
        FedrayError: a secret cannot be read on this node.
    """
    for name, reference in json.loads(os.environ.get(SECRETS) or "{}").items():
        path = Path(str(reference).removeprefix("file:"))
        try:
            value = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise FedrayError(f"secret {name}: {path} cannot be read on {socket.gethostname()} ({why}); put it on every node.") from None
        os.environ[name] = value


def parse_reference(text: str) -> tuple[str, str]:
    """Split ``NAME=file:PATH`` into name and reference.

    Raises:
        ConfigError: the text has another form; the sentence does not repeat a possible secret.
    """
    name, sign, reference = text.partition("=")
    shown = f"--secret {name}" if sign and _NAME.fullmatch(name) else "--secret"
    if shown == "--secret" or not reference.startswith("file:"):
        raise ConfigError(
            f"{shown}: only a reference travels with a job, for its environment is shown to everybody on the dashboard; put the value "
            "into a file on every node and give NAME=file:/path/on/the/nodes."
        )
    if not reference.removeprefix("file:").startswith("/"):
        raise ConfigError(f"--secret {name}: the path after file: must be absolute, for it is read on the nodes.")
    return name, reference


def parse_variable(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` of a job's environment into name and value.

    Raises:
        ConfigError: the text has another form, or looks like a secret.
    """
    name, sign, value = text.partition("=")
    if not sign or not _NAME.fullmatch(name):
        raise ConfigError("--env: should read NAME=VALUE.")
    if _SUSPECT.search(name):
        raise ConfigError(
            f"--env {name}: looks like a secret, and a job's environment is shown to everybody on the dashboard; "
            f"use --secret {name}=file:/path/on/the/nodes."
        )
    refuse_password(f"--env {name}", value)
    return name, value


def refuse_password(where: str, value: str) -> None:
    """Refuse a text with a password in an address or with something that looks like a secret.

    Args:
        where: the option or key that holds the text, for messages.
        value: the text.

    Raises:
        ConfigError: the text holds a secret.
    """
    kind = looks_secret(value.encode()) or ("an address with a password" if _PASSWORD.search(value) else None)
    if kind is not None:
        raise ConfigError(
            f"{where}: holds {kind}, and what a job is given is shown to everybody on the dashboard; "
            "take it out and pass it by reference (--secret)."
        )


def use_ray_token() -> str | None:
    """Switch Ray's token mode on if a token exists and the mode is not set; must be called before Ray is imported.

    Ray itself does this only for local clusters, and then fails to join another. Tokens are looked for in Ray's own order:
    ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Returns:
        The token's source in words; None without a token.

    Raises:
        ConfigError: ``RAY_AUTH_TOKEN_PATH`` names a file without a token, or the mode needs a token and none exists.
    """
    source = None
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    elif path:
        if not _holds_text(Path(path)):
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read, or is empty; it should hold the cluster's token.")
        source = path
    elif _holds_text(Path.home() / ".ray" / "auth_token"):
        source = "~/.ray/auth_token"
    if source is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ConfigError("RAY_AUTH_MODE: asks for a token, and there is none; set RAY_AUTH_TOKEN_PATH to a file that holds the cluster's.")
    return source


def _holds_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False
