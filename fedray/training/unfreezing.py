"""Staged unfreezing: layers that begin to train in a later round than others.

The layers that do not train yet need no gradient for as long as a client trains, so no engine computes one for them, and neither momentum,
decay, clip nor noise knows of them. They stay in the exchanged vector, in which they do not move. A layer that trains is never frozen again, so
no optimiser's memory can move a frozen one. Which round they begin in is public, so a guarantee is the same with and without.

Source: Howard, Ruder 2018, Universal Language Model Fine-tuning for Text Classification, section 3.3
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
from torch import nn

from fedray.components import nearest
from fedray.config import Config, Training
from fedray.errors import ConfigError
from fedray.parameters import Layout, belongs


def layers_in(training: Training, round: int) -> list[str] | None:
    """The layers that train in a round, which counts from 0; None: all."""
    if training.unfreeze is None:
        return None
    return [layer for stage in training.unfreeze if stage.round <= round + 1 for layer in stage.layers]


@contextmanager
def unfrozen(model: nn.Module, training: Training, round: int) -> Iterator[None]:
    """Within the context only the layers of a round need gradients; running statistics follow the records all the same."""
    layers, trained = layers_in(training, round), set[int]()
    if layers is not None:
        trained = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if belongs(name, layers)}
    still = [p for p in model.parameters() if p.requires_grad and layers is not None and id(p) not in trained]
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in still:
            p.requires_grad_(True)


def frozen_in(training: Training, layout: Layout, round: int) -> npt.NDArray[np.bool_] | None:
    """True where the model's vector belongs to a layer that does not train in a round, ``[layout.size]``; None where all do."""
    layers = layers_in(training, round)
    if layers is None:
        return None
    mask = np.zeros(layout.size, dtype=np.bool_)
    for e in layout.entries:
        mask[e.offset : e.offset + e.size] = e.kind == "shared" and not belongs(e.name, layers)
    return mask


def check_unfreezing(config: Config) -> None:
    """Refuse stages out of order, ones that no round reaches, and groups of clients with stages of their own.

    Raises:
        ConfigError: with what to change.
    """
    for i, group in enumerate(config.clients.groups):
        if "unfreeze" in group.training:
            raise ConfigError(
                f"clients.groups.{i}.training.unfreeze: the clients of a round train the same layers; set training.unfreeze for all of them."
            )
    rounds = [stage.round for stage in config.training.unfreeze or ()]
    if not rounds:
        return
    if rounds[0] != 1:
        raise ConfigError(f"training.unfreeze: nothing would train before round {rounds[0]}; give the first stage round 1.")
    if any(after <= before for before, after in pairwise(rounds)):
        raise ConfigError(
            f"training.unfreeze: the stages begin in rounds {', '.join(map(str, rounds))}; each must begin after the one before."
        )
    if rounds[-1] > config.rounds:
        raise ConfigError(
            f"training.unfreeze: round {rounds[-1]} is never reached, because the run has {config.rounds}; change one of the two."
        )


def check_layers(training: Training, model: nn.Module) -> list[str]:
    """The trained parameters of a model that no stage names, so that they never train.

    Raises:
        ConfigError: a stage names no parameter of the model, one that trains already, or one of two that are the same tensor.
    """
    if training.unfreeze is None:
        return []
    named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    first = dict[str, int]()  # the round in which a parameter begins
    for stage in training.unfreeze:
        for layer in stage.layers:
            found = [name for name, _ in named if belongs(name, [layer])]
            if not found:
                layers = dict.fromkeys(part for name, _ in named for part in accumulate(name.split("."), "{}.{}".format))
                raise ConfigError(
                    f"training.unfreeze: no trained parameter of the model is named '{layer}' or begins with '{layer}.'; it has "
                    f"{', '.join(name for name, _ in named)}.{nearest(layer, layers)}"
                )
            if set(found) <= first.keys():
                raise ConfigError(f"training.unfreeze: '{layer}' trains from round {first[found[0]]} on already; name it once.")
            for name in found:
                first.setdefault(name, stage.round)
    same = defaultdict[int, list[str]](list)
    for name, p in named:
        same[id(p)].append(name)
    for names in same.values():
        if len({first.get(name) for name in names}) > 1:
            raise ConfigError(f"training.unfreeze: {' and '.join(names)} are the same tensor; name them in the same stage.")
    return [name for name, _ in named if name not in first]


def said_of_never(never: Sequence[str]) -> list[str]:
    """What is said before a run of which some parameters never train."""
    if not never:
        return []
    return [f"No stage of training.unfreeze names {', '.join(never)}: they are sent to and fro and stay as they began."]
