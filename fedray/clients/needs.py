"""What a batch must be in training at clients."""

from __future__ import annotations

from torch import nn

from fedray.clients.terms import Terms
from fedray.data.records import ClientData, Federation
from fedray.training.coupling import BatchNeeds, batch_needs
from fedray.training.losses import Loss


def needs_at(terms: Terms, model: nn.Module, loss: Loss, data: Federation | ClientData) -> BatchNeeds:
    """What a batch must be for the records of an actor.

    Where records are protected, the pre-flight test has seen that a batch may be anything.
    """
    if terms.plan is not None:
        return BatchNeeds()
    x, y = data.train.x, data.train.y
    seen = None if terms.config.privacy.regimes else y
    return batch_needs(model, loss, tuple(x.shape[1:]), x.dtype.kind == "i", data.classes, seen, tuple(y.shape[1:]))
