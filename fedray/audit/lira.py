"""The likelihood ratio attack: a record's loss, compared with its losses under models that were not trained on it.

Source: Carlini et al. 2022, Membership Inference Attacks From First Principles, the offline attack of section IV-D
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedray.audit.findings import Attack
from fedray.audit.membership import Floats, Target, losses, score_membership
from fedray.config import Training
from fedray.data.records import Records
from fedray.errors import FedrayError
from fedray.rng import generator, torch_seed
from fedray.training.augment import augmented
from fedray.training.coupling import batch_needs
from fedray.training.engine import LocalJob, seeded_torch
from fedray.training.losses import Loss
from fedray.training.plain import plain

SHADOWS, FEWEST = 16, 4
#: Seconds for training all shadow models, and the largest number of steps of each.
BUDGET, MOST_STEPS = 240.0, 2000


def lira_attack(
    target: Target,
    make_model: Callable[[], nn.Module],
    training: Training,
    rounds: int,
    seed: int,
    shadows: int = SHADOWS,
    budget: float = BUDGET,
) -> Attack:
    """Train shadow models without privacy on random halves of members and others, and compare the target's losses with theirs.

    Args:
        target: the attacked model and its records.
        make_model: makes the run's model before training.
        training: the run's section; shadow models use its optimiser, learning rate and batch size.
        rounds: number of rounds; a shadow model takes as many steps as a client in all rounds.
        seed: seed of halves and batches.
        shadows: number of shadow models.
        budget: seconds after which no further shadow model is trained, once there are 4.

    Raises:
        FedrayError: all shadow models diverged.
    """
    pool = Records(np.concatenate([target.members.x, target.others.x]), np.concatenate([target.members.y, target.others.y]))
    n, began = len(pool), time.monotonic()
    draws = generator(seed, "audit", "lira")
    sums, squares, count = np.zeros(n), np.zeros(n), np.zeros(n)
    trained = 0
    for shadow in range(shadows):
        if trained >= FEWEST and time.monotonic() - began > budget:
            break
        half = draws.random(n) < 0.5
        model = make_model()
        _train(model, target.loss, Records(pool.x[half], pool.y[half]), training, rounds, torch_seed(seed, "audit", "lira", shadow))
        scores = confidence(losses(model, target.loss, pool))
        if not np.isfinite(scores).all() or any(not torch.isfinite(p).all() for p in model.parameters()):
            continue
        trained += 1
        sums[~half] += scores[~half]
        squares[~half] += np.square(scores[~half])
        count[~half] += 1
    known = count > 0
    if not known.any():
        raise FedrayError("--attack lira: every shadow model diverged; lower training.lr for the audit.")
    mean = np.divide(sums, count, out=np.zeros(n), where=known)
    # With few shadows one spread for all records is steadier than one each (Carlini et al. 2022, section VI-C).
    spread = float(
        np.sqrt(max((squares[known] - count[known] * np.square(mean[known])).sum() / max(count[known].sum() - known.sum(), 1), 1e-12))
    )
    ratio = (confidence(losses(target.model, target.loss, pool)) - mean) / spread
    ratio[~known] = 0.0
    m = len(target.members)
    found = score_membership("membership by likelihood ratio", ratio[:m], ratio[m:], target)
    return Attack(found.name, found.lower, None, found.epsilon, {**found.facts, "shadows": trained}, found.curves, private=True)


def confidence(losses: Floats) -> Floats:
    """log(p / (1 - p)) of the probability p = e^-loss, float64; its distribution over models is nearly Gaussian."""
    bounded = np.clip(losses, 1e-12, 700.0)
    return -bounded - np.log(-np.expm1(-bounded))


def _train(model: nn.Module, loss: Loss, records: Records, training: Training, rounds: int, seed: int) -> None:
    batch = min(len(records), int(training.batch_size or training.expected_batch or 32))
    steps = rounds * (training.steps or (training.epochs or 1) * -(-len(records) // batch))
    own = training.model_copy(
        update={"batch_size": batch, "steps": min(steps, MOST_STEPS), "epochs": None, "sampling_rate": None, "expected_batch": None}
    )
    shape, tokens, classes = (
        tuple(records.x.shape[1:]),
        records.x.dtype.kind == "i",
        int(records.y.max()) + 1 if records.y.dtype.kind == "i" else None,
    )
    needs = batch_needs(model, loss, shape, tokens, classes, records.y, tuple(records.y.shape[1:]))
    augment = augmented(own, seed, 0, 0)
    job = LocalJob(own, own.lr, loss, generator(seed, "audit", "shadow"), whole=needs.whole, fewest=needs.fewest, augment=augment)
    with seeded_torch(seed, torch.device("cpu")):
        plain(model, torch.from_numpy(records.x), torch.from_numpy(records.y), job)
