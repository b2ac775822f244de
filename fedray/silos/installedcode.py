"""Own code that is installed at a silo, known by the SHA-256 of its file. It is read without being run."""

from __future__ import annotations

import hashlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fedray.errors import ConfigError

#: What the file of each module was like when this process was first asked for it.
_FIRST: dict[str, str] = {}


def installed_file(name: str) -> Path:
    """The file of the module of ``python:package.module:name``. Nothing is imported.

    Raises:
        ConfigError: it is not installed here, or it is no file.
    """
    module = name.removeprefix("python:").partition(":")[0]
    spec: ModuleSpec | None = None
    names, path = module.split("."), None
    for n in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: n + 1]), path)
        path = None if spec is None else spec.submodule_search_locations
        if spec is None or (n + 1 < len(names) and path is None):
            break
    origin = None if spec is None or spec.name != module else spec.origin
    if origin is None or not Path(origin).is_file():
        raise ConfigError(f"'{name}': no file of the module '{module}' is installed here.")
    return Path(origin)


def code_digest(name: str) -> str:
    """SHA-256 of that file, 64 hex digits.

    Raises:
        ConfigError: as :func:`installed_file`; or the file has changed since this process has loaded it.
    """
    path = installed_file(name)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"'{name}': its file cannot be read here ({error.strerror}).") from None
    module = name.removeprefix("python:").partition(":")[0]
    if module in sys.modules and _FIRST.get(module, found) != found:
        raise ConfigError(f"'{name}': its file has changed since this process has loaded it; start the silo again.")
    _FIRST[module] = found
    return found
