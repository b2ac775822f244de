"""Which local engine a run uses."""

from __future__ import annotations

from typing import cast

from torch import nn

from fedray import components
from fedray.config import Config, Training
from fedray.errors import ConfigError
from fedray.privacy.trainingrules import ENGINES
from fedray.training import bookkeeping, lockstep
from fedray.training.coupling import BatchNeeds
from fedray.training.engine import Engine
from fedray.traits import Traits
from fedray.updates.pipeline import keep_state, make_stages

#: The engines that are proven to do record-level DP-SGD. No other may run under a privacy claim.
PRIVATE = tuple(name for name in ENGINES if name != "auto")


def untouched_by(config: Config, traits: Traits) -> bool:
    """Whether an algorithm with these traits leaves local training to the engine alone, and clients keep nothing and do all their passes."""
    partly = config.cohort.stragglers is not None and not config.cohort.stragglers.drop
    return traits.together and not partly and not keep_state(make_stages(config))


def choose_engine(
    name: str,
    private: bool,
    model: nn.Module,
    training: Training | None = None,
    untouched: bool = False,
    needs: BatchNeeds = BatchNeeds(),  # noqa: B008 - frozen
    single: bool = False,
    composes: bool = False,
) -> tuple[str, Engine]:
    """The engine's name and the engine.

    Args:
        name: the config's ``training.engine``: ``auto``, a built-in, or ``python:module:attribute``.
        private: whether records are protected in local training (``privacy.regime`` record).
        model: what will be trained; ``auto`` takes ``book`` where it knows all layers, else ``hooks``; without privacy
            ``lockstep`` where it can train the model and gains by it, else ``plain``.
        training: the training section.
        untouched: whether the algorithm leaves local training to the engine alone, and clients keep nothing between their turns.
        needs: of a batch (:mod:`fedray.training.coupling`).
        single: whether single gradients are needed, because those of a person are clipped as one.
        composes: whether the algorithm makes a step's gradient of several, or adds to the loss.

    Raises:
        ConfigError: no such engine, or it does not go with the regime, the model or the algorithm.
    """
    if name == "auto" and private:
        name = "book" if bookkeeping.unsupported(model) is None and not single else "hooks"
    elif name == "auto":
        together = (
            training is not None
            and untouched
            and needs.whole is None
            and lockstep.unsupported(model, training) is None
            and lockstep.gains(model)
        )
        name = "lockstep" if together else "plain"
    if private and name not in PRIVATE:
        raise ConfigError(
            f"training.engine: '{name}' gives no record-level privacy, which privacy.regime asks for; use auto, book, hooks or ghost."
        )
    if single and name != "hooks":
        raise ConfigError(f"training.engine: '{name}' has no single gradients to clip by person; use hooks or auto.")
    if not private and name in PRIVATE:
        raise ConfigError(
            f"training.engine: '{name}' is for record-level privacy, but privacy.regime is none; use auto, plain or lockstep."
        )
    if name == "lockstep" and training is not None:
        reason = needs.whole or (
            lockstep.unsupported(model, training)
            if untouched
            else "the algorithm takes part in every step, clients keep a state, or some do fewer passes"
        )
        if reason is not None:
            raise ConfigError(f"training.engine: lockstep cannot train this ({reason}); use auto or plain.")
    if needs.couples and name != "plain":
        raise ConfigError(f"training.engine: '{name}' cannot train this, because {needs.whole}; use auto or plain.")
    if composes and name != "plain":
        raise ConfigError(
            f"training.engine: '{name}' takes one gradient of the loss a step, but this algorithm.kind makes it in its own way; use auto or plain."
        )
    if training is not None and training.augment is not None and name not in (*PRIVATE, "plain"):
        raise ConfigError(f"training.engine: '{name}' does not know training.augment; use auto, or take augment out.")
    if training is not None and training.precision != "fp32" and name != "plain":
        raise ConfigError(
            f"training.engine: '{name}' computes in fp32 alone; use auto, or take training.precision={training.precision} out."
        )
    return name, cast(Engine, components.find_callable(components.ENGINES, name))
