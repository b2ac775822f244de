"""Decides which files of a directory are shipped to the cluster with a job.

Ray packs a working directory or a module's directory as it is, and everybody who may run code in the cluster can read the package. So
files with the names of secrets are not shipped, and a file whose content looks like a key stops the submission.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from fedray.credentials import looks_secret
from fedray.errors import ConfigError

#: Largest size of a shipped directory in bytes; it is kept in the memory of the cluster's head.
SHIPPED = 100 * 2**20

#: Repositories, environments, caches, outputs, and ledgers, because charges to a shipped copy would be lost.
_USELESS = ["*.ledger", ".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "/runs", "/mlruns"]

#: Usual names of secrets, as patterns of a .gitignore. ``.[!p]*`` excludes Python files. This repository's .gitignore has the same.
SECRET_NAMES = [
    *("secret", "*secrets", "secret.[!p]*", "*secrets.[!p]*", "*[-_.]secret.[!p]*", "client_secret*.json"),
    *("token", "*[-_.]token", "*[-_.]tokens", "tokens", "token.[!p]*", "*[-_]token.[!p]*", "*tokens.[!p]*"),
    *("*credential", "*credentials", "*credential*.[!p]*", "service[-_]account*.json", "*[-_]service[-_]account*.json"),
    *("password", "*passwords", "passwd", "*[-_.]password", "password.[!p]*", "*passwords.[!p]*", "*[-_]password.[!p]*"),
    *("*api[-_]key", "*api[-_]key.[!p]*", "*apikey", "*apikey.[!p]*", "*private[-_]key", "*private[-_]key.[!p]*"),
    *("*accesskey.[!p]*", "*accesskeys.[!p]*", "*access[-_]key.[!p]*", "*access[-_]keys.[!p]*", "rootkey.csv"),
    *(".env", ".env.*", "*.env", ".envrc", "*.tfvars", "*.tfstate", "*.tfstate.*"),
    *("*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.ppk", "*.kdbx", "*.gpg", "*.pgp", "*.agekey", "*.salt"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "ssh_host_*_key*"),
    *(".ssh", ".aws", ".azure", ".gcloud", ".kube", ".docker", ".gnupg", ".oci", "kubeconfig", "kubeconfig.*", "*.kubeconfig"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".git-credentials", ".htpasswd", ".dockercfg", ".dockerconfigjson"),
    *(
        ".boto",
        ".s3cfg",
        ".passwd-s3fs",
        ".vault-token",
        ".vault_pass*",
        ".databrickscfg",
        "kaggle.json",
        "rclone.conf",
        ".mc",
        ".*_history",
    ),
]


def exclusions(root: Path) -> list[str]:
    """Return patterns of the files that are not shipped: useless files, outputs of runs, and files with the names of secrets."""
    return [*_USELESS, *_outputs(root), *(_in_any_case(name) for name in SECRET_NAMES)]


def check(flag: str, root: Path, excludes: Sequence[str], needed: Path | None = None) -> list[str]:
    """Check the files that Ray will pack of ``root``.

    Args:
        flag: the option that named the directory, for errors.
        root: the directory.
        excludes: from :func:`exclusions`.
        needed: a file that must be packed, relative to ``root``.

    Returns:
        The files and directories that are left out because of their names, as paths relative to ``root``.

    Raises:
        ConfigError: the directory does not exist or is too large, a file looks like a key, or ``needed`` would not be packed.
    """
    if not root.is_dir():
        raise ConfigError(f"{flag} {root}: there is no such directory.")
    files, left = _survey(root, [e for e in excludes if e not in _SECRETS])
    sizes = {name: (root / name).stat().st_size for name in files}
    whole = sum(sizes.values())
    if whole > SHIPPED:
        largest = ", ".join(f"{name} {sizes[name] / 2**20:.0f} MiB" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise ConfigError(
            f"{flag} {root}: holds {whole / 2**20:.0f} MiB to ship, more than {SHIPPED >> 20} MiB (largest: {largest}); ship code "
            "and configs only: list data in a .gitignore or .rayignore there, and keep it where the nodes can read it."
        )
    if needed is not None and needed.as_posix() not in files:
        raise ConfigError(
            f"{needed}: would not be shipped: {flag} {root} leaves it out, by its name or by a .gitignore or .rayignore there; rename it, "
            "or take it out of the list."
        )
    for name in files:
        why = _looks_secret(flag, root, name)
        if why:
            raise ConfigError(
                f"{flag} {root}: {name} looks like a secret ({why}), and whoever may run code in the cluster can read what is shipped; move "
                "it elsewhere, or list it in a .rayignore there. Nodes get a secret by reference: --secret NAME=file:/path/on/the/nodes."
            )
    return left


def _in_any_case(pattern: str) -> str:
    """Return a pattern for upper and lower case, for which git's patterns have no flag."""
    inside, made = False, []
    for sign in pattern:
        inside = sign == "[" or (inside and sign != "]")
        both = sign.lower() + sign.upper() if sign.isalpha() else sign
        made.append(both if inside or not sign.isalpha() else f"[{both}]")
    return "".join(made)


_SECRETS = frozenset(map(_in_any_case, SECRET_NAMES))


def _survey(root: Path, excludes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files below ``root`` that Ray would pack, and those that have the name of a secret, as relative paths."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env import packaging  # Ray's own walk, which obeys .gitignore and .rayignore

    secret = _secret_names(root)
    files, left = [], []

    def see(path: Path) -> None:
        if secret(path):
            if not secret(path.parent):
                left.append(path.relative_to(root).as_posix() + ("/" if path.is_dir() else ""))
        elif path.is_file():
            files.append(path.relative_to(root).as_posix())

    heeded = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    packaging._dir_travel(root, [packaging._get_excludes(root, list(excludes))], see, include_gitignore=heeded)
    return sorted(files), sorted(left)


def _looks_secret(flag: str, root: Path, name: str) -> str | None:
    """Return in words which kind of secret a file looks like; None if it looks like none."""
    path, base = root / name, root.resolve()
    target = path.resolve()  # a link is packed as the file that it leads to
    base = base if target.is_relative_to(base) else Path("/")
    if _secret_names(base)(target):
        return f"a link to {target}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {root}: {name} cannot be read ({error.strerror}); list it in a .rayignore there.") from None
    return looks_secret(data)


@cache
def _secret_names(root: Path) -> Callable[[Path], bool]:
    """Return a function that says whether a path below ``root`` has a part with the name of a secret."""
    from ray._private.runtime_env import packaging

    found: Callable[[Path], bool] = packaging._get_excludes(root, list(_SECRETS))
    return found


def _outputs(root: Path) -> list[str]:
    """Return patterns of the run directories below ``root``."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [b for b in below if b not in _USELESS]
        if {"config.yaml", "metrics.jsonl"} <= set(files):
            below.clear()
            found.append("/" + os.path.relpath(folder, root))
    return found
