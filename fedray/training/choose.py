"""Which local engine a run uses."""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import nn

from fedray import components
from fedray.errors import ConfigError
from fedray.training.engine import Engine

#: The engines that are proven to do record-level DP-SGD. No other may run under a privacy claim.
PRIVATE = ("ghost", "hooks")

#: Above this many parameters a gradient for each record costs more than ghost clipping's second backward pass.
GHOST_PARAMETERS = 200_000
_GHOST_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)


def choose_engine(name: str, private: bool, model: nn.Module) -> tuple[str, Engine]:
    """The engine's name and the engine.

    Args:
        name: the config's ``training.engine``: ``auto``, a built-in, or ``python:module:attribute``.
        private: whether records are protected in local training (``privacy.regime`` record).
        model: what will be trained; ``auto`` takes ``ghost`` for large models of layers it supports.

    Raises:
        ConfigError: no such engine, or it does not go with the regime.
    """
    if name == "auto":
        name = "plain" if not private else "ghost" if suits_ghost(model) else "hooks"
    if private and name not in PRIVATE:
        raise ConfigError(
            f"training.engine: '{name}' gives no record-level privacy, which privacy.regime asks for; use auto, hooks or ghost."
        )
    if not private and name in PRIVATE:
        raise ConfigError(f"training.engine: '{name}' is for record-level privacy, but privacy.regime is none; use auto or plain.")
    engine = components.find(components.ENGINES, name)
    if not callable(engine):
        raise ConfigError(f"training.engine: '{name}' is a {type(engine).__name__}; name a function of (model, x, y, job).")
    return name, cast(Engine, engine)


def suits_ghost(model: nn.Module) -> bool:
    """Whether ghost clipping pays and is exact: a large model of supported layers that share no parameters.

    Source: Li et al. 2022, Large Language Models Can Be Strong Differentially Private Learners.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if sum(p.numel() for p in trainable) <= GHOST_PARAMETERS:
        return False
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)
    layers = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    return max(owners.values()) == 1 and all(type(layer) in _GHOST_TYPES for layer in layers)
