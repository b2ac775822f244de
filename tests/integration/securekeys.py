"""Files of identities for the clients of a test."""

from __future__ import annotations

import json
from pathlib import Path

from fedray.secure.identities import make_key


def identities(where: Path, clients: int) -> dict[str, str]:
    """Make the files for so many clients; returns the arguments of ``secure``."""
    where.mkdir()
    listed = {name: make_key(where / f"{name}.pem") for name in (f"client-{i:04d}" for i in range(clients))}
    path = where / "all.json"
    path.write_text(json.dumps(listed))
    path.chmod(0o644)
    return {"identities": str(path), "key": str(where / "{client}.pem")}
