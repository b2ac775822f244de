"""Survival: when an event happens to a record, or until when it had not.

Targets are [n, 2]: whether the event was seen (1) or the record left before it (0, censored), and the time of that. A model gives one output a
record, the logarithm of its risk relative to others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedray.errors import ConfigError
from fedray.training.losses import declared
from fedray.training.metrics import measures

#: Pairs of records that are compared at once.
_PAIRS = 1 << 22


@declared(outputs=1, targets=("n", 2), couples=True, task="survival")
def cox(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cox's negative log partial likelihood of a batch, over its records: outputs [n] or [n, 1], targets [n, 2] event and time.

    The risk set of an event is all of the batch whose time is no less; of equal times (ties) every event has the whole set, after Breslow.
    The sum over events is divided by the batch's records, so the mean over clients weighted by records is the likelihood stratified by
    client. Of whole batches: clients as one batch each have their exact likelihood.

    Source: Cox 1972, Regression Models and Life-Tables; Breslow 1974, Covariance Analysis of Censored Survival Data

    Raises:
        ConfigError: the first target is not 0 or 1.
    """
    event, time = _event_and_time("training.loss: cox", targets)
    order = torch.argsort(time, descending=True, stable=True)
    risk, ages = outputs.reshape(-1)[order], -time[order]
    last = torch.searchsorted(ages, ages, right=True) - 1  # of those with an equal time
    at_risk = torch.logcumsumexp(risk, 0)[last]
    return ((at_risk - risk) * event[order].to(risk.dtype)).sum() / len(risk)


@measures("survival")
def c_index(outputs: Tensor, targets: Tensor) -> float:
    """Harrell's concordance: the part of comparable pairs whose riskier record has the earlier event; NaN where no pair is comparable.

    A pair is comparable where the earlier time is that of an event, or of equal times just one is. Equal outputs count one half.

    Source: Harrell, Califf, Pryor, Lee, Rosati 1982, Evaluating the Yield of Medical Tests

    Raises:
        ConfigError: the first target is not 0 or 1, or a record has several outputs.
    """
    if outputs.numel() != len(targets):
        raise ConfigError(f"evaluation.metrics: c_index is for one output a record, but outputs have shape {tuple(outputs.shape[1:])}.")
    event, time = _event_and_time("evaluation.metrics: c_index", targets)
    risk, seen = outputs.reshape(-1).double(), torch.nonzero(event).flatten()
    pairs = concordant = 0.0
    for i in torch.split(seen, max(1, _PAIRS // max(1, len(time)))):
        later = (time > time[i, None]) | ((time == time[i, None]) & ~event)
        above = (risk[i, None] > risk).double() + 0.5 * (risk[i, None] == risk).double()
        pairs += float(later.sum())
        concordant += float(above[later].sum())
    return concordant / pairs if pairs else math.nan


def _event_and_time(who: str, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [n] and float [n]."""
    event, time = targets[:, 0].contiguous(), targets[:, 1].contiguous()
    if not bool(((event == 0) | (event == 1)).all()):
        raise ConfigError(f"{who} takes targets [n, 2]: event (0 or 1), then time; set data.label=[EVENT, TIME] in this order.")
    return event == 1, time


LOSSES = {"cox": cox}
METRICS = {"c_index": c_index}
