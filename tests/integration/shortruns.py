"""The config that short runs through Ray share; each test names the sections in which its run differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedray

#: Two actors train softmax regression of digits for six clients, and nothing is tracked.
SHORT: dict[str, Any] = {
    "name": "short",
    "seed": 3,
    "rounds": 3,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
    "model": {"kind": "softmax"},
    "clients": {"actors": 2},
    "training": {"lr": 0.1, "batch_size": 10, "epochs": 1},
    "tracking": {"enabled": False},
}


def short_run(
    output: Path,
    notes: list[str] | None = None,
    *,
    resume: bool = False,
    listen: Callable[[str, Any], None] = lambda kind, value: None,
    **sections: Any,
) -> fedray.Result:
    """Run :data:`SHORT` with other ``sections``; what it says of faults and other events is added to ``notes``, and all goes to ``listen``."""

    def keep(kind: str, value: Any) -> None:
        if kind in ("note", "fault") and notes is not None:
            notes.append(str(value))

    return fedray.run(SHORT | sections, output=str(output), callbacks=[keep, listen], resume=resume)
