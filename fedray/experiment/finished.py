"""What can be made of a finished run's files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fedray.config import Config
from fedray.models.build import build_model
from fedray.runfiles import RunFiles


def trained_model(files: RunFiles, config: Config) -> tuple[Any, Any]:
    """Rebuild the model of a finished run from its files; with a zero input of one record."""
    import torch

    facts = json.loads(files.partition.read_text())["model"]
    dtype = torch.int64 if facts["tokens"] else torch.float32
    model = build_model(config.model, tuple(facts["input_shape"]), facts["outputs"], config.seed, dtype)
    state = model.state_dict()
    state.update({name: torch.from_numpy(value) for name, value in files.load_model().items()})
    model.load_state_dict(state)
    return model.eval(), np.zeros((1, *facts["input_shape"]), dtype=np.int64 if facts["tokens"] else np.float32)
