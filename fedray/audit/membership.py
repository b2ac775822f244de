"""Membership inference on a finished run: whether the final model's losses tell training records from other records.

Members are the clients' training records, and others are held-out records. The figures depend on the run's private records, so a run with
a privacy claim does not publish them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn

from fedray.audit import bounds
from fedray.audit.findings import Attack
from fedray.data.records import Federation, Records
from fedray.errors import FedrayError
from fedray.models.build import evaluating
from fedray.rng import generator
from fedray.training.losses import Loss

Floats = npt.NDArray[np.float64]

#: Largest number of records of each side.
MOST_RECORDS = 5000
_BATCH = 1000
_RATES = (1e-3, 1e-2)


@dataclass(frozen=True)
class Target:
    """A trained model and the two kinds of records.

    Attributes:
        model: the trained model.
        loss: loss of each record.
        members, others: equally many records of each kind, at most 5000, in random order.
        epsilon, delta: the run's record-level claim; None and 0 if there is none.
    """

    model: nn.Module
    loss: Loss
    members: Records
    others: Records
    epsilon: float | None
    delta: float


def sides(federation: Federation, seed: int) -> tuple[Records, Records]:
    """Equally many members and others.

    Raises:
        FedrayError: the run held no records out.
    """
    held = [r for r in (federation.test, federation.client_test) if r is not None and len(r)]
    if not held:
        raise FedrayError("data.holdout: membership inference needs records that were not trained on; hold some out.")
    other = Records(np.concatenate([r.x for r in held]), np.concatenate([r.y for r in held]))
    draws = generator(seed, "audit", "membership")
    n = min(len(other), len(federation.train), MOST_RECORDS)
    chosen, rest = draws.permutation(len(federation.train))[:n], draws.permutation(len(other))[:n]
    return Records(federation.train.x[chosen], federation.train.y[chosen]), Records(other.x[rest], other.y[rest])


def membership_attack(target: Target) -> Attack:
    """The attack that takes records with a low loss for members.

    Source: Yeom et al. 2018, Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting
    """
    inside, outside = (-losses(target.model, target.loss, r) for r in (target.members, target.others))
    return score_membership("membership by loss", inside, outside, target)


def score_membership(name: str, inside: Floats, outside: Floats, target: Target) -> Attack:
    """The ROC curve, true positive rates at low false positive rates, and a lower bound at a threshold chosen on the first half of the records.

    Args:
        name: name of the attack.
        inside, outside: scores of members and others, float64, in random order; a larger score means a member.
        target: target with the proven epsilon and delta.
    """
    fpr, tpr = roc(inside, outside)
    low, high = len(inside) // 2, len(outside) // 2
    threshold = _best_threshold(inside[:low], outside[:high], target.delta)
    counts = (len(inside) - low, len(outside) - high, int((inside[low:] >= threshold).sum()), int((outside[high:] >= threshold).sum()))
    facts: dict[str, object] = {"records": len(inside), "delta": target.delta, "auc": auc(inside, outside)}
    facts |= {f"tpr_at_fpr_{rate:g}": float(tpr[np.searchsorted(fpr, rate, side="right") - 1]) for rate in _RATES}
    curves = {"inside": inside, "outside": outside}
    return Attack(name, bounds.clopper_pearson(*counts, target.delta), None, target.epsilon, facts, curves, private=True)


def roc(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates of all thresholds, both float64, ascending from 0 to 1; equal scores share a threshold."""
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    member = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])[order]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    tpr, fpr = np.cumsum(member)[last] / len(inside), np.cumsum(1 - member)[last] / len(outside)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def auc(inside: Floats, outside: Floats) -> float:
    """Probability that a member scores above another record; a tie counts one half."""
    ranks = stats.rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def losses(model: nn.Module, loss: Loss, records: Records) -> Floats:
    """Every record's loss, float64 ``[n]``; a loss that is not finite becomes the largest float."""
    found = []
    with evaluating(model):
        for start in range(0, len(records), _BATCH):
            part = records.slice(start, start + _BATCH)
            found.append(loss(model(torch.from_numpy(part.x)), torch.from_numpy(part.y)).double().numpy())
    every: Floats = np.nan_to_num(np.concatenate(found), nan=np.finfo(np.float64).max)
    return every


def _best_threshold(inside: Floats, outside: Floats, delta: float) -> float:
    candidates = np.unique(np.quantile(np.concatenate([inside, outside]), np.linspace(0.0, 1.0, 101), method="nearest"))
    found = [
        bounds.clopper_pearson(len(inside), len(outside), int((inside >= t).sum()), int((outside >= t).sum()), delta) for t in candidates
    ]
    return float(candidates[int(np.argmax(found))])
