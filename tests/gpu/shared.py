"""Several actors on one GPU: the model of one actor, every one on the GPU, and its memory given back at the end."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.gpu.commands import run_fedray
from tests.gpu.record import Figures, Missed, Record
from tests.rounding import apart, steps_apart, terms_of

SECTION = "several actors on one GPU"
ACTORS, CLIENTS, ROUNDS, RECORDS, BATCH = 4, 16, 4, 1797, 10
#: Bytes of the GPU's memory that may be gone after a run, and seconds in which the rest is back.
LEFT, BACK = 64 * 2**20, 20.0


def run(record: Record) -> None:
    """All checks of the section; on the CPU with actors that share its cores."""
    name = f"{ACTORS} actors give what one gives, and leave nothing behind"
    record.check(SECTION, name, lambda: several(record), takes=90)
    if not record.on_gpu:
        record.check(SECTION, "every actor is on the GPU", dict, gpu=True)
        record.check(SECTION, "memory is given back after a run", dict, gpu=True)


def config(actors: int, on_gpu: bool) -> dict[str, Any]:
    """Digits, without privacy: two runs from one seed then do the same."""
    return {
        "name": "shared",
        "seed": 1,
        "rounds": ROUNDS,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": CLIENTS}},
        "model": {"kind": "python:tests.integration.gpuparts:model"},
        "training": {"lr": 0.05, "batch_size": BATCH, "epochs": 1},
        "clients": {"actors": actors, "resources": {"cpu": 0.5, "gpu": 1.0 / actors if on_gpu else 0.0}},
        "evaluation": {"every": 0},
        "tracking": {"enabled": False},
        "ray": {"address": "local", "cpus": max(2, actors), "gpus": 1 if on_gpu else 0},
    }


def several(record: Record) -> Figures:
    """One actor, then several."""
    from fedray.runfiles import RunFiles

    found: dict[int, tuple[np.ndarray[Any, Any], str]] = {}
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for actors in (1, ACTORS):
            place, notes = Path(folder) / str(actors), Path(folder) / f"notes-{actors}"
            notes.mkdir()
            before = free(record)
            summary = run_fedray(config(actors, record.on_gpu), place, max(30.0, record.left()), FEDRAY_TEST_NOTES=str(notes))
            figures[f"memory_gone_after_{actors}"] = gone(record, before)
            tensors = RunFiles(place / "run").load_model()
            found[actors] = np.concatenate([values.ravel() for values in tensors.values()]), summary["model_sha256"]
            noted = [json.loads(note.read_text()) for note in notes.glob("train-*.json")]
            # The driver tries the model, too, and has no GPU.
            figures[f"devices_of_{actors}"] = sorted(note["device"] for note in noted if note["granted"] or not record.on_gpu)
    model = nn.Linear(64, 10)
    one, several = found[1][0], found[ACTORS][0]
    moved = steps_apart(np.zeros_like(one), one, terms_of(model, BATCH), steps=ROUNDS * -(-RECORDS // CLIENTS // BATCH))
    figures |= {"same_bytes": found[1][1] == found[ACTORS][1], "apart": apart(several, one), "bound": moved}
    figures["trained"] = len(figures[f"devices_of_{ACTORS}"])
    if figures["apart"] > (moved if record.on_gpu else 0.0):
        raise Missed("several actors give another model than one", figures)
    devices = {device for actors in (1, ACTORS) for device in figures[f"devices_of_{actors}"]}
    if devices != {"cuda:0" if record.on_gpu else "cpu"} or figures["trained"] < 2:
        raise Missed("not all actors were where they should be, or a single one trained all clients", figures)
    if record.on_gpu and max(figures[f"memory_gone_after_{actors}"] for actors in (1, ACTORS)) > LEFT:
        raise Missed("the GPU's memory was not given back", figures)
    return figures


def free(record: Record) -> int:
    """Bytes of the GPU's memory that nobody uses; 0 without a GPU."""
    return torch.cuda.mem_get_info(record.device)[0] if record.on_gpu else 0


def gone(record: Record, before: int) -> int:
    """Bytes that are missing, after the time that processes take to end."""
    until = time.monotonic() + BACK
    while before - free(record) > LEFT and time.monotonic() < until:
        time.sleep(0.5)
    return before - free(record)
