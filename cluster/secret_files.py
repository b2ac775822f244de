"""Secrets of a container: they come as files, and only the process that needs them has them in its environment.

Standard library only: the MLflow server's image has nothing else of fedray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def with_secrets(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The environment with each of ``names`` read from the file that ``NAME_FILE`` names, where it does; ``NAME_FILE`` is taken out.

    Raises:
        SystemExit: a file cannot be read or is empty, or both ``NAME`` and ``NAME_FILE`` are set.
    """
    resolved = dict(environment)
    for name in names:
        path = resolved.pop(f"{name}_FILE", None)
        if path is None:
            continue
        if name in resolved:
            raise SystemExit(f"{name}: it is set, and {name}_FILE too; keep one of them.")
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{name}_FILE: {path} cannot be read ({getattr(error, 'strerror', None) or 'not text'}).") from None
        if not value:
            raise SystemExit(f"{name}_FILE: {path} is empty.")
        resolved[name] = value
    return resolved
