"""Whose updates each step of a run's model was made of: ``participants.jsonl`` in the run's directory, where that is no secret.

A line is ``{"round": N, "clients": [NAME, ...]}``, or ``{"round": N, "everyone": true}`` for all clients of the run; rounds count from 1. It is
on disk before the model of that round is. Where a round stands twice, as after a driver that was replaced, both lines count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedray.storage import append_line, read_lines, write_atomic

FILE = "participants.jsonl"


def append_participants(root: Path, round_: int, clients: Sequence[str], of: int) -> None:
    """Write down the clients of a step.

    Args:
        root: the run's directory.
        round_: number of the round, from 1.
        clients: different names.
        of: number of all clients of the run.
    """
    who = {"everyone": True} if len(clients) == of else {"clients": list(clients)}
    append_line(root / FILE, json.dumps({"round": round_, **who}))


def rewind_participants(root: Path, rounds: int) -> None:
    """Cut the file back to the first ``rounds`` rounds; broken lines go, too."""
    path = root / FILE
    if path.exists():
        kept = [line for line in read_lines(path, _good).whole if line["round"] <= rounds]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_participants(root: Path) -> list[dict[str, Any]] | None:
    """The file's lines; None if there is none.

    Raises:
        FedrayError: the file is damaged.
    """
    path = root / FILE
    return read_lines(path, _good).all() if path.exists() else None


def _good(line: dict[str, Any]) -> bool:
    return isinstance(line.get("round"), int) and (line.get("everyone") is True or isinstance(line.get("clients"), list))
