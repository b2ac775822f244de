"""Compares what two runs of one config left behind: the model's bytes, the ledger's figures, the rows and the results.

Times and traffic are left out: which actor trains whom, and so what is sent, depends on which of them is free first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

#: What is compared, in the order in which it is shown.
KINDS = ("model", "ledger", "rows", "results")
#: File that holds the answer of ``fedray ledger show --json``, beside the run's own.
LEDGER = "ledger.json"

_LEFT_OUT = ("time/", "traffic/")
_NO_FIGURES = ("statement", "claim_reasons", "accountant_version", "ledger_sha256")  # sentences, and what contains times
_RESULTS = ("status", "rounds", "engine", "final", "best")
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class Tensor:
    """A tensor as a safetensors file has it: the format's name of its type, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def differences(base: Path, tree: Path) -> dict[str, list[str]]:
    """What differs between the output folders of two runs.

    Returns:
        For each of :data:`KINDS` a sentence for every figure that differs; an empty list where none does.

    Raises:
        FileNotFoundError: a run left no model, rows or summary.
    """
    before, after = _outcome(base), _outcome(tree)
    return {
        kind: [
            _sentence(name, before[kind], after[kind]) for name in before[kind] | after[kind] if _differs(name, before[kind], after[kind])
        ]
        for kind in KINDS
    }


def _outcome(run: Path) -> dict[str, dict[str, Any]]:
    """All that is compared of a run: for each of :data:`KINDS`, figures (or tensors) by name."""
    summary = _read(run / "summary.json")
    tensors = safetensors.deserialize((run / "model.safetensors").read_bytes())
    rows = [json.loads(line, parse_constant=str) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": {name: Tensor(t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in tensors},
        "ledger": _flat(summary["privacy"] or {}, leave_out=_NO_FIGURES) | _ledger(run),
        "rows": {f"round {row['round']} {k}": v for row in rows for k, v in row["metrics"].items() if not k.startswith(_LEFT_OUT)},
        "results": _flat({key: summary[key] for key in _RESULTS}),
    }


def _ledger(run: Path) -> dict[str, Any]:
    """What each client has spent, by the name of the ledger's file, the client and the figure."""
    if not (run / LEDGER).exists():
        return {}
    books = {Path(book["file"]).name: book for book in _read(run / LEDGER)["books"]}
    clients = {name: {client["name"]: client for client in book["clients"]} for name, book in books.items()}
    return _flat(clients, leave_out=("name",)) | {f"{name} entries": book["entries"] for name, book in books.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=str)  # NaN as a text: it then equals itself


def _flat(figures: Mapping[str, Any], leave_out: tuple[str, ...] = (), prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if name not in leave_out:
            flat |= _flat(value, leave_out, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _differs(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return name not in before or name not in after or before[name] != after[name]


def _sentence(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if name not in after:
        return f"{name} is only at the base"
    if name not in before:
        return f"{name} is only in the working tree"
    a, b = before[name], after[name]
    if not isinstance(a, Tensor):
        return f"{name} was {a!r} and is {b!r}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{name} was {a.dtype}{list(a.shape)} and is {b.dtype}{list(b.shape)}"
    changed = np.count_nonzero(np.frombuffer(a.data, np.uint8) != np.frombuffer(b.data, np.uint8))
    text = f"{name} has {changed} other bytes of {len(a.data)}"
    if a.dtype in _FLOATS:
        x, y = (np.frombuffer(t.data, _FLOATS[t.dtype]).astype(np.float64) for t in (a, b))
        text += f"; a number moved by at most {np.abs(x - y).max():.2g}"
    return text
