"""What can be made of a run's files: its model whole, and the state from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedray.checkpoint import Checkpoint
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.experiment.preparation import Model
from fedray.frozen import check_frozen, frozen_values
from fedray.models.build import build_model
from fedray.parameters import Values
from fedray.runfiles import RunFiles


def trained_model(files: RunFiles, config: Config) -> tuple[Any, Any]:
    """Rebuild the model of a finished run from its files; with a zero input of one record."""
    facts = json.loads(files.partition.read_text())["model"]
    dtype = torch.int64 if facts["tokens"] else torch.float32
    model = build_model(config.model, tuple(facts["input_shape"]), facts["outputs"], config.seed, dtype)
    state = model.state_dict()
    state.update({name: torch.from_numpy(value) for name, value in files.load_model().items()})
    model.load_state_dict(state)
    check_frozen(model, config.model.kind, facts.get("frozen_sha256"))
    return model.eval(), np.zeros((1, *facts["input_shape"]), dtype=np.int64 if facts["tokens"] else np.float32)


def check_checkpoint(found: Checkpoint | None, model: Model | None, where: Path | str) -> None:
    """See that a checkpoint is of this model, where there is one and the model is known.

    Raises:
        ConfigError: it is of another.
    """
    if found is None or model is None:
        return
    if found.weights.shape != (model.layout.size,):
        raise ConfigError(f"--resume: the checkpoint in {where} is of another model; start a new run.")
    if found.meta.get("frozen_sha256", "") != model.frozen:
        raise ConfigError(
            f"--resume: the model's frozen parameters are others than those of the checkpoint in {where}; "
            "bring back what the model's factory read, or start a new run."
        )


def frozen_of(config: Config, model: Model) -> Mapping[str, Values]:
    """The frozen parameters by name, made in this process.

    Raises:
        ConfigError: they are others than those that ``model`` was made with.
    """
    if not model.frozen:
        return {}
    built = build_model(config.model, model.shape, model.outputs, config.seed, torch.int64 if model.tokens else torch.float32)
    check_frozen(built, config.model.kind, model.frozen)
    return frozen_values(built)
