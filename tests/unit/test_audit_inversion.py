"""Gradient inversion, and the pictures of an audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audited import digits

from fedray.audit.findings import Attack
from fedray.audit.inversion import SETTINGS, inversion_attack, psnr
from fedray.audit.local_run import subjects
from fedray.audit.plots import draw
from fedray.planning.preparation import prepare


@pytest.mark.parametrize("model", ["{kind: softmax}", "{kind: mlp, hidden: [16]}", "{kind: 'python:audited:no_bias'}"])
def test_a_record_comes_back_exactly_unless_there_is_noise(model: str) -> None:
    """With z = 2 over some 650 or more values, a PSNR above 15 dB by chance has probability far below 1e-6."""
    prepared = prepare(digits(f"model={model}", "training.engine=auto"))
    found = inversion_attack(subjects(prepared)[0], prepared.test, 10, seed=0)
    open_, clipped, noised = (float(found.facts[f"psnr_db_{s.replace(' ', '_')}"]) for s in SETTINGS)
    assert open_ > 100 and clipped > 100 and noised < 15
    assert found.facts["model"] == ("softmax" if "softmax" in model else "mlp")
    assert found.curves["original"].shape == found.curves[SETTINGS[2]].shape == (8, 64)
    assert found.verdict == "demonstration"


def test_random_records_are_rebuilt_where_there_are_no_public_ones() -> None:
    prepared = prepare(digits("training.engine=auto"))
    assert inversion_attack(subjects(prepared)[0], None, 10, seed=0).facts["psnr_db_without_privacy"] > 100


def test_psnr() -> None:
    original = np.array([0.0, 1.0, 0.5, 0.25])
    assert psnr(original, original) == 200.0
    assert psnr(original, original + 0.1) == pytest.approx(20.0)


def test_every_attack_with_curves_gets_its_pictures(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    curves = {"inside": draws.standard_normal(40) + 1, "outside": np.append(draws.standard_normal(40), 1e300)}
    shapes = [{name: draws.random((2, n)) for name in ("original", *SETTINGS)} for n in (64, 3072, 13)]
    attacks = [
        Attack("a / b", 0.1, 0.2, 1.0, {"delta": 1e-5}, curves),
        Attack("c", 0.1, None, None, {}, curves),
        Attack("none", 0.1, None, None),
        *(Attack(f"inversion {i}", None, None, None, {}, s) for i, s in enumerate(shapes)),
    ]
    made = draw(tmp_path, attacks)
    assert {k: len(v) for k, v in made.items()} == {"a / b": 2, "c": 2, "inversion 0": 1, "inversion 1": 1, "inversion 2": 1}
    assert all(p.stat().st_size > 1000 for files in made.values() for p in files)
    assert (tmp_path / "a_b_roc.png").exists()
