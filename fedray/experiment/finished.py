"""Rebuilds the model of a run from the run's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedray.config import Config
from fedray.errors import FedrayError, first_line
from fedray.frozen import check_frozen, frozen_values
from fedray.inputs import Input
from fedray.models.build import build_model, without_weights
from fedray.models.facts import ModelFacts
from fedray.parameters import Values
from fedray.runfiles import RunFiles
from fedray.storage import read_json, reading


def trained_model(files: RunFiles, config: Config) -> tuple[nn.Module, npt.NDArray[Any]]:
    """Rebuild the model of a finished run.

    Returns:
        The ``torch.nn.Module`` in evaluation mode, and an input of one record whose values are zero, float32 or int64 ``[1, *shape]``.

    Raises:
        FedrayError: ``partition.json`` or ``model.safetensors`` is missing, damaged, or of another model than the config's; or what the
            run has trained does not predict by itself.
        ConfigError: the model's factory made other frozen parameters than in the run.
    """
    tensors = files.load_model()
    model, facts = untrained_model(files, config)
    if "apart" in facts:
        raise FedrayError(
            f"{files.model}: the model of this run does not predict by itself, because {facts['apart']}; ask for a client's with model(client=NAME)."
        )
    state = model.state_dict()
    try:
        model.load_state_dict({**state, **{name: torch.from_numpy(value) for name, value in tensors.items()}})
    except RuntimeError as error:
        raise FedrayError(
            f"{files.model}: does not fit the model that config.yaml and partition.json describe ({first_line(error)}); bring the run's own files back."
        ) from error
    check_frozen(model, config.model.kind, facts.get("frozen_sha256"))
    return model.eval(), np.zeros((1, *facts["input_shape"]), dtype=np.int64 if facts["tokens"] else np.float32)


def untrained_model(files: RunFiles, config: Config) -> tuple[nn.Module, Mapping[str, Any]]:
    """Build the model of a run as its seed draws it; returns it with what ``partition.json`` says of it.

    Raises:
        FedrayError: ``partition.json`` is missing or damaged.
    """
    with reading(files.partition):
        facts = (read_json(files.partition) or {})["model"]
        shape, outputs, tokens = tuple(map(int, facts["input_shape"])), facts["outputs"], bool(facts["tokens"])
        inputs = [Input.of(document) for document in facts.get("inputs", [])]
    dtype = torch.int64 if tokens else torch.float32
    model = build_model(without_weights(config.model), shape, outputs, config.seed, dtype, facts.get("positions"), inputs)
    return model, facts


def frozen_of(facts: ModelFacts) -> Mapping[str, Values]:
    """Build the frozen parameters in this process; returns them by name.

    Raises:
        ConfigError: they differ from those with which the run began.
    """
    if not facts.frozen:
        return {}
    return frozen_values(facts.build())
