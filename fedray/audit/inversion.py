"""Gradient inversion: reconstruction of a record from its update, without privacy, with clipping alone, and with clipping and noise.

The gradients of a dense layer are dL/dW_i = (dL/db_i) x, so their quotient is exactly the layer's input x. The run's client code computes
the updates, each by one step on one record.

Source: Phong et al. 2017, Privacy-Preserving Deep Learning: Revisited and Enhanced, section III; Geiping et al. 2020, Inverting Gradients, proposition 3.1
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from torch import nn

from fedray.audit.findings import Attack
from fedray.audit.probes import Subject, synthetic, train_one
from fedray.choices import Choice, ModelChoice
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask
from fedray.clients.terms import Site, make_terms
from fedray.data.records import Federation, Records
from fedray.models.facts import first_model
from fedray.parameters import Layout, Vector, get_vector
from fedray.rng import generator

Floats = npt.NDArray[np.float64]

#: Number of reconstructed records, and the largest reported ratio in dB, above which float32 has no precision.
RECORDS, _MOST_DB = 8, 200.0
SETTINGS = ("without privacy", "clip alone", "clip and noise")


def inversion_attack(
    subject: Subject, records: Records | None, classes: int | None, seed: int, target_shape: tuple[int, ...] = ()
) -> Attack:
    """Reconstruct some records from their updates and measure the quality by the PSNR in dB.

    Args:
        subject: the clients whose code computes the updates; their plan's noise is used in the third setting.
        records: public records to reconstruct; None for random records.
        classes: number of classes of the targets; None for regression.
        seed: seed of the choice of records.
        target_shape: shape of one record's targets.

    Returns:
        An attack without a bound; ``facts`` contains the median PSNR of each setting, ``curves`` the records.
    """
    draws = generator(seed, "audit", "inversion")
    if records is None or not len(records):
        records = synthetic(subject.model.shape, False, RECORDS, classes, draws, target_shape)
    chosen = draws.permutation(len(records))[:RECORDS]
    x, y = records.x[chosen].astype(np.float32), records.y[chosen]
    subject = _with_dense_front(subject)
    found: dict[str, Floats] = {"original": x.reshape(len(x), -1).astype(np.float64)}
    facts: dict[str, object] = {"model": subject.config.model.kind, "noise_multiplier": subject.plan.noise_multiplier}
    for setting in SETTINGS:
        rebuilt = np.stack([_rebuild(subject, setting, Records(x[i : i + 1], y[i : i + 1])) for i in range(len(x))])
        found[setting] = rebuilt
        facts[f"psnr_db_{setting.replace(' ', '_')}"] = float(
            np.median([psnr(a, b) for a, b in zip(found["original"], rebuilt, strict=True)])
        )
    return Attack("gradient inversion (demonstration)", None, None, None, facts, found)


def psnr(original: Floats, rebuilt: Floats) -> float:
    """Peak signal-to-noise ratio in dB, at most 200; the peak is the range of the original record."""
    error = float(np.mean(np.square(original - rebuilt)))
    peak = float(np.ptp(original)) or 1.0
    return min(_MOST_DB, 10 * math.log10(peak**2 / error)) if error > 0 else _MOST_DB


def _with_dense_front(subject: Subject) -> Subject:
    """The subject, with a small dense network as its model unless the model begins with a dense layer over the whole record and is exchanged
    as a whole.
    """
    model = subject.model.build()
    first = next((m for m in model.modules() if any(True for _ in m.parameters(recurse=False))), None)
    dense = isinstance(first, nn.Linear) and first.bias is not None and first.in_features == math.prod(subject.model.shape)
    if dense and not subject.model.personal.entries and first is not None and all(p.requires_grad for p in first.parameters(recurse=False)):
        return subject
    choice = ModelChoice(kind="mlp")
    _, facts = first_model(choice, subject.model.shape, subject.model.outputs, subject.config.seed)
    return replace(subject, config=subject.config.model_copy(update={"model": choice}), model=facts)


def _rebuild(subject: Subject, setting: str, record: Records) -> Floats:
    """A record reconstructed from the update of one step on it, float64 ``[features]``."""
    common = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "lr": 1.0, "schedule": Choice(kind="constant")}
    if setting == SETTINGS[0]:
        plan = None
        how = {"engine": "plain", "batch_size": 1, "steps": 1, "epochs": None, "sampling_rate": None, "expected_batch": None}
    else:
        z = 0.0 if setting == SETTINGS[1] else subject.plan.noise_multiplier
        plan = replace(subject.plan, noise_multiplier=z, sampling_rate=Fraction(1), steps=1, expected_batch=1.0)
        how = {"engine": "auto", "steps": 1, "sampling_rate": 1.0, "expected_batch": 1.0}
    group = replace(subject.group, training=subject.group.training.model_copy(update={**common, **how}))
    config = subject.config.model_copy(update={"algorithm": Choice(kind="fedavg")})
    federation = Federation(["one"], record, np.array([0, 1], dtype=np.int64), None, None, None, None)
    host = ClientHost(make_terms(config, group, plan, subject.model), Site(device="cpu"), federation)
    host.ready()
    layout = subject.model.layout
    update, _, _ = train_one(host, get_vector(subject.model.build(), layout), ClientTask(0, "one"), 0, 1.0)
    return _divide(layout, update)


def _divide(layout: Layout, update: Vector) -> Floats:
    views = layout.views(update.astype(np.float32))
    weight, bias = list(views.values())[:2]
    i = int(np.argmax(np.abs(bias)))
    return (weight[i].astype(np.float64) / float(bias[i])).reshape(-1) if bias[i] else np.zeros(weight.shape[1])
