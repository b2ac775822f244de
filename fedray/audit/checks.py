"""Checks of the record-level mechanism on synthetic records, before anything private is touched.

They find faults that an attack on a trained model cannot find: noise that is slightly too small, sampling that is not independent, a
clip that is not joint. All checks run the code of the run's clients (see :mod:`fedray.audit.probes`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from fedray.algorithms.algorithm import begun, make_algorithm
from fedray.audit.findings import Check
from fedray.audit.probes import Floats, Probe, Subject, start_host, synthetic, train_one
from fedray.audit.statistics import coin_check, guarded, independence_check, largest, noise_check, secrecy_check
from fedray.clients.messages import ClientTask
from fedray.clients.states import StatePlace
from fedray.data.records import Federation, Records
from fedray.parameters import get_vector
from fedray.privacy.accounting import accountant
from fedray.privacy.csprng import noise_source
from fedray.privacy.recordplan import dpsgd_terms
from fedray.rng import generator
from fedray.rounding import rounded_up
from fedray.training.preflight import TOLERANCE

NOISE_VALUES = 20_000
#: Largest number of local steps of a round that a check runs.
MOST_STEPS = 50
#: Allowed norms by rounding, in clip norms: of one record alone, and of a difference of two sums.
_ALONE, _DIFFERENCE = 1.0 + 2 * TOLERANCE, 1.0 + 1e-3
_COIN_STEPS, _COIN_RECORDS, _MOST_COIN_RECORDS, _MEAN_BATCH = 256, 64, 1000, 8
#: Number of rounds whose coins are drawn a second time.
_SECRET_ROUNDS = 32
_GRADIENT = 500
#: Fields of a report that may differ: between equal runs, and the address of the client's state, which holds the hash of what the noised
#: steps have made.
_MAY_DIFFER = ("seconds", "pid", "state")


def record_checks(subject: Subject, classes: int | None, target_shape: tuple[int, ...] = ()) -> list[Check]:
    """All checks of a group of clients under record-level DP-SGD.

    Args:
        subject: the clients.
        classes: number of classes of the targets; None for regression.
        target_shape: shape of one record's targets.
    """
    checks: list[tuple[str, Callable[[str, Subject], Check]]] = [
        ("source of noise and coins", _source),
        ("epsilon of the plan", _plan),
        ("sensitivity of the run's model", partial(_sensitivity, target_shape=target_shape)),
        ("clip of adversarial records", _clip),
        *([] if subject.plan.person is None else [("records of one person", _person)]),
        ("noise of one step", partial(_noise, steps=1)),
        ("noise of a whole round", partial(_noise, steps=min(subject.plan.steps, MOST_STEPS))),
        ("noise differs by client, round, attempt", _distinct),
        ("batches are independent coins", _coins),
        ("coins differ within a round", _coins_within_a_round),
        ("coins do not follow from the run's seed", _secret_coins),
        ("charged steps are those that run", _charged),
        ("nothing but the update depends on records", partial(_telemetry, classes=classes, target_shape=target_shape)),
    ]
    return [guarded(name, partial(check, name, subject)) for name, check in checks]


def _source(name: str, subject: Subject) -> Check:
    source = noise_source(subject.config.privacy.insecure_seed, 0, 0)
    secure = bool(getattr(source, "secure", False))
    return Check(name, secure, "cryptographic" if secure else f"{type(source).__name__} can be replayed; unset privacy.insecure_seed")


def _plan(name: str, subject: Subject) -> Check:
    """The epsilon of the plan's event, composed over all participations, is at most the target."""
    plan = subject.plan
    found = accountant.bound(plan.planned(), plan.delta)
    limit = plan.target_epsilon
    text = f"epsilon {rounded_up(found)} for {plan.participations} rounds of {plan.steps} steps at noise multiplier {plan.noise_multiplier:.4g}"
    return Check(name, limit is None or found <= limit * (1 + 1e-9), text + ("" if limit is None else f" (target {limit:g})"))


def _sensitivity(name: str, subject: Subject, target_shape: tuple[int, ...]) -> Check:
    host = start_host(subject, _federation(subject, None, target_shape, 4, 0))
    return Check(name, True, f"one record moves a step by {host.preflight():.6f} clip norms")


def _clip(name: str, subject: Subject) -> Check:
    """The norm of each record's gradient alone, and its effect on the sum of all, is at most the clip norm for any gradient."""
    gradients = adversarial(_GRADIENT, generator(0, "audit", "clip"))
    n = len(gradients)
    groups = [gradients, *(gradients[[i]] for i in range(n)), *(np.delete(gradients, i, axis=0) for i in range(n))]
    probe = Probe(subject, groups, noise_multiplier=0.0, sampling_rate=Fraction(1), steps=1)
    sums = [probe.sum(client=k) for k in range(len(groups))]
    alone = largest([_norm(s) for s in sums[1 : n + 1]])
    influence = largest([_norm(sums[0] - s) for s in sums[n + 1 :]])
    passed = alone <= _ALONE and influence <= _DIFFERENCE
    return Check(name, passed, f"alone {alone:.6f}, among others {influence:.6f} clip norms at most, over {n} records")


def _person(name: str, subject: Subject) -> Check:
    """A person with many records, all of gradients that a faulty clip does not bound, moves the sum by no more than is charged for."""
    person = subject.plan.person
    assert person is not None
    gradients = np.concatenate([adversarial(_GRADIENT, generator(i, "audit", "person")) for i in range(4)])
    alike = np.tile(gradients[:1], (len(gradients), 1))  # the sum of several is as long as it can be
    n = len(gradients)
    groups = [np.concatenate([each, gradients]) for each in (gradients, alike)] + [gradients]
    whose = np.concatenate([np.zeros(n, dtype=np.int64), 1 + np.arange(n)] * 2 + [1 + np.arange(n)])
    probe = Probe(subject, groups, noise_multiplier=0.0, sampling_rate=Fraction(1), steps=1, persons=whose)
    without = probe.sum(client=2)
    moved, limit = largest([_norm(probe.sum(client=k) - without) for k in (0, 1)]), person.records or 1
    found = f"a person with {n} records moves a step by {moved:.6f} clip norms, of {limit} that are charged"
    return Check(name, moved <= limit * _DIFFERENCE, found)


def adversarial(d: int, draws: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gradients that a faulty clip does not bound, float32 ``[8, d]``: dense, sparse, huge, tiny and not finite."""
    dense = draws.standard_normal(d)
    sparse = np.zeros(d)
    sparse[draws.integers(d)] = 1e8
    even = np.full(d, 1e3)
    mixed = np.where(draws.random(d) < 0.5, 1e15, 1e-15)
    nan, infinite = dense.copy(), dense.copy()
    nan[0], infinite[-1] = np.nan, np.inf
    return np.stack([dense * 1e6, sparse, even, mixed, dense * 1e-30, np.full(d, 3e38), nan, infinite]).astype(np.float32)


def _noise(name: str, subject: Subject, steps: int) -> Check:
    probe = Probe(subject, [np.zeros((3, NOISE_VALUES), dtype=np.float32)], steps=steps)
    return noise_check(name, probe.sum(), subject.plan.noise_multiplier * float(np.sqrt(steps)), single=steps == 1)


def _distinct(name: str, subject: Subject) -> Check:
    silent = np.zeros((3, NOISE_VALUES), dtype=np.float32)
    probe = Probe(subject, [silent, silent], steps=1)
    draws = {
        "client 0": probe.sum(),
        "client 1": probe.sum(client=1),
        "round 1": probe.sum(round_=1),
        "attempt 1": probe.sum(attempt=1),
        "the same again": probe.sum(),
        "a new start": Probe(subject, [silent, silent], steps=1).sum(),
    }
    return independence_check(name, draws)


def _coins(name: str, subject: Subject) -> Check:
    rate = float(subject.plan.sampling_rate)
    probe = _membership(subject, rate, 1)
    drawn = np.stack([probe.sum(round_=r) > 0.5 for r in range(_COIN_STEPS)])
    return coin_check(name, drawn, rate)


def _coins_within_a_round(name: str, subject: Subject) -> Check:
    """The spread of each record's count over the steps of one round, which would be larger if coins were used twice."""
    rate, steps, rounds = float(subject.plan.sampling_rate), max(2, min(subject.plan.steps, 16)), 16
    probe = _membership(subject, rate, steps)
    counts = np.stack([np.rint(probe.sum(round_=r)) for r in range(rounds)])
    if rate == 1:
        return Check(name, bool((counts == steps).all()), f"every record in each of {steps} steps at rate 1")
    expected = steps * rate * (1 - rate)
    squares = np.square(counts - steps * rate)
    fourth = expected * (1 + 3 * (steps - 2) * rate * (1 - rate))
    z = float((squares.sum() - counts.size * expected) / np.sqrt(counts.size * (fourth - expected**2)))
    found = f"spread of records' counts over {steps} steps of {rounds} rounds {z:+.1f} standard deviations from independent coins"
    return Check(name, abs(z) < 9.0, found, 1e-6)


def _secret_coins(name: str, subject: Subject) -> Check:
    """Coins of the same rounds and config, drawn a second time by the same actor and by a new actor, must be independent of the first ones."""
    rate = float(subject.plan.sampling_rate)
    probe, other = _membership(subject, rate, 1), _membership(subject, rate, 1)
    drawn = [np.stack([p.sum(round_=r) > 0.5 for r in range(_SECRET_ROUNDS)]) for p in (probe, probe, other)]
    return secrecy_check(name, {"the same rounds": (drawn[0], drawn[1]), "a new start": (drawn[0], drawn[2])}, rate)


def _charged(name: str, subject: Subject) -> Check:
    """The charged event has the plan's rate and noise, and at least as many steps as a round runs, counted by the sum of unit gradients."""
    plan = subject.plan
    charged = dpsgd_terms(plan.event())
    gradient = np.full((1, 1), np.float32(plan.clip * 2))
    counted = float(Probe(subject, [gradient], noise_multiplier=0.0, sampling_rate=Fraction(1)).sum()[0])
    if charged is None:
        return Check(name, False, f"what is charged, {plan.event()}, is no event of DP-SGD")
    same = (charged.sampling_rate, charged.noise_multiplier) == (plan.sampling_rate, plan.noise_multiplier)
    found = f"{counted:.3f} steps run, {charged.steps} are charged at rate {float(charged.sampling_rate):g} and noise multiplier "
    return Check(name, same and counted <= charged.steps * (1 + 1e-3), f"{found}{charged.noise_multiplier:g}")


def _membership(subject: Subject, rate: float, steps: int) -> Probe:
    """A probe without noise whose record i has the gradient e_i, so that the sum counts each sampled record."""
    n = int(np.clip(np.ceil(_MEAN_BATCH / (rate * max(1 - rate, 0.05))), _COIN_RECORDS, _MOST_COIN_RECORDS))
    return Probe(subject, [np.eye(n, dtype=np.float32) * np.float32(subject.plan.clip * 2)], noise_multiplier=0.0, steps=steps)


def _telemetry(name: str, subject: Subject, classes: int | None, target_shape: tuple[int, ...]) -> Check:
    """Two clients that differ in every record send equal messages except for their updates."""
    one_step = subject.group.training.model_copy(update={"steps": 1})
    short = replace(subject, group=replace(subject.group, training=one_step), plan=replace(subject.plan, steps=1))
    algorithm, facts = make_algorithm(subject.config.algorithm), subject.model
    weights = begun(algorithm, algorithm.exchange(facts.layout), facts.layout, get_vector(facts.build(), facts.layout), facts.another)
    sent = []
    for seed in (1, 2):
        federation = _federation(subject, classes, target_shape, 12, seed)
        with tempfile.TemporaryDirectory(prefix="fedray-audit-") as folder:
            host = start_host(short, federation, StatePlace(folder) if algorithm.traits.state else None)
            info = host.ready()
            _, report, part = train_one(host, weights, ClientTask(0, "probe"), 0, 12.0)
        if report.loss is not None:
            return Check(name, False, f"the client's report holds its training loss ({report.loss:.4f})")
        total = {k: v for k, v in vars(part.total).items() if k != "values"}
        sent.append({"info": asdict(info), "report": report._asdict(), "part": {**vars(part), "total": total}})
    differ = [
        f"{kind}.{key}" for kind in sent[0] for key in sent[0][kind] if key not in _MAY_DIFFER and sent[0][kind][key] != sent[1][kind][key]
    ]
    return Check(name, not differ, f"differing with the records: {', '.join(differ)}" if differ else "reports of unlike records are alike")


def _federation(subject: Subject, classes: int | None, target_shape: tuple[int, ...], n: int, seed: int) -> Federation:
    records: Records = synthetic(subject.model.shape, subject.model.tokens, n, classes, generator(seed, "audit", "records"), target_shape)
    records = replace(records, persons=np.arange(n))  # each of a person of its own
    return Federation(["probe"], records, np.array([0, n], dtype=np.int64), None, None, None, classes)


def _norm(values: Floats) -> float:
    return float(np.linalg.norm(values))
