"""Language modelling: a model gives logits of the next token at every position of a record.

Records are tokens int64 [n, T], targets the tokens that follow: int64 [n, T], or [n, T - 1] where the last position has none. A record is one
sequence: per-record clipping and record-level privacy are of whole sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fedray.errors import ConfigError
from fedray.training.losses import declared
from fedray.training.metrics import measures


@declared(targets=("n", "positions"), task="tokens")
def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the next token, the mean over a record's positions: outputs [n, T, tokens], targets int64 [n, T] or [n, T - 1]."""
    return _losses(outputs, targets).mean(1)


@measures("tokens", lower_is_better=True)
def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """Exponential of the mean cross-entropy over all tokens; infinite where that overflows.

    Source: Jelinek et al. 1977, Perplexity: A Measure of the Difficulty of Speech Recognition Tasks.
    """
    mean = float(_losses(outputs, _tokens("perplexity", outputs, targets)).double().mean())
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


@measures("tokens")
def token_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Part of all tokens that have the largest logit."""
    wanted = _tokens("token_accuracy", outputs, targets)
    return float((outputs[:, : wanted.shape[1]].argmax(-1) == wanted).double().mean())


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, [n, T]."""
    # Tokens as rows: cross_entropy would otherwise want them on the second axis, which costs a copy.
    logits = outputs[:, : targets.shape[1]]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def _tokens(metric: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.ndim != 3 or targets.ndim != 2 or targets.dtype != torch.int64:
        raise ConfigError(
            f"evaluation.metrics: {metric} is for tokens: int64 targets [n, T] and outputs [n, T, tokens], but a record's targets are "
            f"{targets.dtype} {tuple(targets.shape[1:])} and its outputs {tuple(outputs.shape[1:])}."
        )
    return targets


LOSSES = {"next_token": next_token}
METRICS = {"perplexity": perplexity, "token_accuracy": token_accuracy}
