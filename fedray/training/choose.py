"""Which local engine a run uses."""

from __future__ import annotations

from typing import cast

from torch import nn

from fedray import components
from fedray.errors import ConfigError
from fedray.privacy.rules import ENGINES
from fedray.training.bookkeeping import unsupported
from fedray.training.engine import Engine

#: The engines that are proven to do record-level DP-SGD. No other may run under a privacy claim.
PRIVATE = tuple(name for name in ENGINES if name != "auto")


def choose_engine(name: str, private: bool, model: nn.Module) -> tuple[str, Engine]:
    """The engine's name and the engine.

    Args:
        name: the config's ``training.engine``: ``auto``, a built-in, or ``python:module:attribute``.
        private: whether records are protected in local training (``privacy.regime`` record).
        model: what will be trained; ``auto`` takes ``book`` where it knows all layers, else ``hooks``.

    Raises:
        ConfigError: no such engine, or it does not go with the regime.
    """
    if name == "auto":
        name = "plain" if not private else "book" if unsupported(model) is None else "hooks"
    if private and name not in PRIVATE:
        raise ConfigError(
            f"training.engine: '{name}' gives no record-level privacy, which privacy.regime asks for; use auto, book, hooks or ghost."
        )
    if not private and name in PRIVATE:
        raise ConfigError(f"training.engine: '{name}' is for record-level privacy, but privacy.regime is none; use auto or plain.")
    engine = components.find(components.ENGINES, name)
    if not callable(engine):
        raise ConfigError(f"training.engine: '{name}' is a {type(engine).__name__}; name a function of (model, x, y, job).")
    return name, cast(Engine, engine)
