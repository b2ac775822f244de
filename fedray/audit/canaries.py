"""The one-run audit at record level: canary records, included by fair coins, are trained by the run's own code.

A canary is a random record with a random label and a larger norm than the client's own records, so that its gradient is clipped and
points in a direction of its own. Half of the canaries train, and the adversary guesses which. Under zero-out adjacency, a canary that does
not train stays in the data as a record of NaNs, for which the engine takes a zero gradient.

Source: Steinke, Nasr & Jagielski 2023, Privacy Auditing with One (1) Training Run
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedray.audit import bounds
from fedray.audit.findings import ERRORS, Attack
from fedray.audit.local_run import LocalRun, Released
from fedray.audit.probes import Floats, synthetic
from fedray.data.records import Features, Federation, Indices, Records
from fedray.errors import FedrayError
from fedray.models.build import evaluating
from fedray.parameters import Layout, Vector, set_vector
from fedray.planning.preparation import Prepared
from fedray.privacy.accounting import accountant
from fedray.privacy.recordplan import RecordPlan
from fedray.rng import generator
from fedray.training.losses import find_loss

#: Share of the canaries with the most extreme scores that is guessed, fixed before any score is seen.
GUESSED = 0.25
#: Norm of a canary, divided by the median norm of its client's records.
_SCALE = 4.0
#: Largest number of gradient values in memory, and in total; above the total, only evenly spaced rounds are scored.
_AT_ONCE, _IN_ALL = 1 << 24, 1 << 34
#: Number of a client's own records from which their common gradient direction is computed.
_OWN = 256
#: Records of a canary whose records are clipped as one.
_OF_ONE = 4


@dataclass(frozen=True)
class Canaries:
    """Canary records and their coins.

    Attributes:
        records: m records.
        clients: index of the client that holds each canary, int64 ``[m]``.
        included: whether each canary trains, bool ``[m]``.
        copies: records of each canary: it is a person who has so many, all alike.
    """

    records: Records
    clients: Indices
    included: npt.NDArray[np.bool_]
    copies: int = 1

    def __len__(self) -> int:
        return len(self.clients)


def make_canaries(federation: Federation, count: int, draws: np.random.Generator, copies: int = 1) -> Canaries:
    """``count`` canaries of ``copies`` records each, distributed evenly over the clients, with their coins."""
    tokens = federation.train.x.dtype.kind == "i"
    made = synthetic(federation.shape, tokens, count, federation.classes, draws, federation.target_shape)
    clients = np.arange(count) % len(federation.names)
    if tokens:
        x = draws.integers(0, int(federation.train.x.max()) + 1, made.x.shape)
        return Canaries(Records(x, made.y), clients, draws.random(count) < 0.5, copies)
    typical = np.array([_median_norm(federation.client(k).train.x) for k in range(len(federation.names))])
    flat = made.x.reshape(count, -1)
    flat *= (_SCALE * typical[clients] / np.linalg.norm(flat, axis=1))[:, None].astype(np.float32)
    return Canaries(made, clients, draws.random(count) < 0.5, copies)


def with_canaries(federation: Federation, canaries: Canaries, zeroed: bool) -> Federation:
    """The federation with the canaries at the end of their clients' records.

    Args:
        federation: the clients' records without canaries.
        canaries: all canaries.
        zeroed: whether canaries that do not train are kept as records of NaNs; if not, they are left out.
    """
    xs, ys, whose, sizes = [], [], [], []
    known = federation.train.persons
    next_person = 0 if known is None else int(known.max()) + 1
    for k in range(len(federation.names)):
        own = federation.client(k).train
        mine = canaries.clients == k
        here = mine if zeroed else mine & canaries.included
        x = canaries.records.x[here].copy()
        if zeroed:
            x[~canaries.included[here]] = np.nan
        xs += [own.x, *[x] * canaries.copies]
        ys += [own.y, *[canaries.records.y[here]] * canaries.copies]
        if own.persons is not None:
            whose += [own.persons, *[next_person + np.flatnonzero(here)] * canaries.copies]
        sizes.append(len(own) + canaries.copies * int(here.sum()))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    train = Records(np.concatenate(xs), np.concatenate(ys), None if known is None else np.concatenate(whose))
    return Federation(federation.names, train, offsets, None, None, None, federation.classes, federation.columns, inputs=federation.inputs)


def canary_attacks(prepared: Prepared, federation: Federation, count: int, seed: int) -> list[Attack]:
    """Train once with half of the canaries and guess which ones trained, by their loss and by each round's updates.

    Args:
        prepared: the run; without plans, no epsilon is proven.
        federation: the run's records.
        count: number of canaries, at least 8.
        seed: seed of canaries, coins and cohorts.

    Returns:
        Two attacks: one by the canaries' loss under the final model, and one by the inner product of each released update with the canary's
        clipped gradient at the model with which the round began.

    Raises:
        FedrayError: there are fewer than 8 canaries, or a client failed.
    """
    if count < 8:
        raise FedrayError(f"--canaries {count}: too few to bound anything; give 8 or more.")
    model = prepared.model
    assert model is not None
    plans = [plan for plan in prepared.plans if plan is not None]
    canaries = make_canaries(federation, count, generator(seed, "audit", "canaries"), records_of_a_canary(plans))
    local = LocalRun(prepared, with_canaries(federation, canaries, zeroed=bool(plans) and not model.facts.tokens))
    rounds = prepared.config.rounds
    scorer = _Scorer(prepared, federation, canaries)
    scored = int(np.minimum(federation.sizes, _OWN).sum()) + 2 * count
    every = max(1, math.ceil(rounds * scored * model.facts.layout.size / _IN_ALL))
    for released in local.run(rounds, seed):
        if released.round % every == 0:
            scorer.see(released)
    delta = max((plan.delta for plan in plans), default=1e-5)
    facts = {"canaries": count, "rounds": rounds, "delta": delta}
    facts |= {"records_of_a_canary": canaries.copies} if canaries.copies > 1 else {}
    epsilon = _proven(prepared, local)
    by_loss, by_updates = -scorer.losses(local.weights), scorer.scores()
    return [
        score_attack("canary records, loss of the final model", by_loss, canaries.included, epsilon, delta, facts),
        score_attack("canary records, every update", by_updates, canaries.included, epsilon, delta, facts),
    ]


def records_of_a_canary(plans: Sequence[RecordPlan]) -> int:
    """How many records a canary has: as many of a person as are charged for; of one whose records are clipped as one some more than one."""
    person = plans[0].person if plans else None
    return 1 if person is None else person.records or _OF_ONE


def score_attack(
    name: str, scores: Floats, included: npt.NDArray[np.bool_], epsilon: float | None, delta: float, facts: Mapping[str, object]
) -> Attack:
    """Guess that the eighth of the canaries with the largest scores trained, and the eighth with the smallest did not.

    Args:
        name: name of the attack.
        scores: score of each canary, float64 ``[m]``; a larger score means that the canary trained.
        included: the coins, bool ``[m]``.
        epsilon: proven epsilon; None if nothing is proven.
        delta: delta of the proven epsilon.
        facts: further figures for the report.
    """
    m = len(scores)
    each = max(2, round(m * GUESSED / 2))
    order = np.argsort(np.where(np.isfinite(scores), scores, 0.0), kind="stable")
    correct = int(included[order[-each:]].sum() + (~included[order[:each]]).sum())
    inside, outside = scores[included], scores[~included]
    enough = len(inside) > 1 and len(outside) > 1 and bool(np.isfinite(scores).all())
    estimate, at_least = (bounds.from_scores_alike(inside, outside, delta, e) if enough else math.inf for e in (0.0, ERRORS))
    figures = {**facts, "guesses": 2 * each, "correct": correct, "lower_if_gaussian": bounds.one_run_gaussian(m, 2 * each, correct, delta)}
    curves = {"inside": inside.astype(np.float64), "outside": outside.astype(np.float64)}
    return Attack(name, bounds.one_run(m, 2 * each, correct, delta), estimate, epsilon, figures, curves, at_least=at_least)


def _proven(prepared: Prepared, local: LocalRun) -> float | None:
    """The largest client's epsilon for the rounds in which it took part; None if a group has no plan."""
    figures = []
    for group, plan in zip(prepared.groups, prepared.plans, strict=True):
        if plan is None:
            return None
        most = max(int(local.participations[i]) for i in group.members)
        figures.append(accountant.bound({plan.event(): most}, plan.delta) if most else 0.0)
    return max(figures)


class _Scorer:
    """Sums, for each canary, the inner products of its client's updates with its clipped gradient."""

    def __init__(self, prepared: Prepared, federation: Federation, canaries: Canaries) -> None:
        model, config = prepared.model, prepared.config
        assert model is not None
        self._model = model.facts.build()
        self._layout: Layout = model.facts.layout
        self._loss = find_loss(config.training.loss)
        self._own, self._canaries = federation, canaries
        self._clips = {i: plan.clip for g, plan in zip(prepared.groups, prepared.plans, strict=True) if plan is not None for i in g.members}
        self._total = np.zeros(len(canaries))

    def see(self, released: Released) -> None:
        """Add the scores of one client's canaries by one of its updates.

        The adversary knows the client's own records. The common gradient directions of these records and of all canaries reveal nothing about
        a single canary, so both directions are first projected out of the update.
        """
        client, before = released.client, released.before
        mine = np.flatnonzero(self._canaries.clients == client)
        if not len(mine):
            return
        own, theirs = self._own.client(client).train.slice(0, _OWN), self._canaries.records
        theirs = Records(theirs.x[mine], theirs.y[mine])
        clip = self._clips.get(client, math.inf)
        together = [sum(g.sum(0, dtype=np.float64) for g in self._gradients(before, records, clip)) for records in (own, theirs)]
        basis, _ = np.linalg.qr(np.stack(together, axis=1))
        rest = released.update - basis @ (basis.T @ released.update)
        self._total[mine] -= np.concatenate([g @ rest for g in self._gradients(before, theirs, clip)])

    def scores(self) -> Floats:
        """The scores of all canaries, float64 ``[m]``, each divided by the standard deviation over its client's canaries."""
        scores = self._total.copy()
        for k in np.unique(self._canaries.clients):
            mine = self._canaries.clients == k
            if mine.sum() > 3:
                scores[mine] = (scores[mine] - np.median(scores[mine])) / max(float(scores[mine].std()), 1e-30)
        return scores

    def losses(self, weights: Vector) -> Floats:
        """Every canary's loss under a model, float64 ``[m]``."""
        set_vector(self._model, self._layout, weights)
        records = self._canaries.records
        with evaluating(self._model):
            losses: Floats = self._loss(self._model(torch.from_numpy(records.x)), torch.from_numpy(records.y)).double().numpy()
        return losses

    def _gradients(self, weights: Vector, records: Records, clip: float) -> Iterator[npt.NDArray[np.float32]]:
        """Clipped gradients of single records, in blocks of float32 ``[records, d]``, in the layout's order."""
        set_vector(self._model, self._layout, weights)
        self._model.eval()
        parameters = {n: p.detach() for n, p in self._model.named_parameters() if p.requires_grad}

        def loss(trained: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._loss(functional_call(self._model, trained, (x[None],)), y[None])[0]

        each = vmap(grad(loss), in_dims=(None, 0, 0))
        for part in np.array_split(np.arange(len(records)), math.ceil(len(records) * self._layout.size / _AT_ONCE)):
            found = each(parameters, torch.from_numpy(records.x[part]), torch.from_numpy(records.y[part]))
            rows = [found[e.name].flatten(1) if e.name in found else torch.zeros(len(part), e.size) for e in self._layout.entries]
            gradients: npt.NDArray[np.float32] = torch.cat(rows, dim=1).numpy()
            norms = np.linalg.norm(gradients, axis=1, keepdims=True)
            yield np.where(np.isfinite(norms), gradients * np.minimum(1.0, clip / np.maximum(norms, 1e-12)), 0.0).astype(np.float32)


def _median_norm(x: Features) -> float:
    return float(np.median(np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1))) or 1.0
