"""Same seed, same bytes: however many actors, wherever, in whatever order, after whatever died.

Noise is seeded here (``privacy.insecure_seed``), which only tests may ask for.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from paths import ROOT
from processes import kill

import fedray
from fedray.aggregation.exact import ExactSum
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.pool import Pool, RoundLog
from fedray.configfile import load_config
from fedray.planning.preparation import prepare
from fedray.runfiles import RunFiles

pytestmark = pytest.mark.usefixtures("cluster")

DIGITS = ROOT / "configs" / "digits.yaml"
SMALL = [
    "rounds=5",
    "data.partition={kind: iid, clients: 4}",
    "privacy={regime: record, noise_multiplier: 1.0, delta: 1e-4, clip: 1.0, insecure_seed: 11}",
    "training.steps=150",
    "tracking.enabled=false",
    "cohort={kind: all, retries: 3}",
]


def train(output: Path, *overrides: str, at_round: int | None = None, then: Any = None, resume: bool = False) -> fedray.Result:
    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == at_round:
            then()

    return fedray.run(DIGITS, overrides=[*SMALL, *overrides], output=str(output), callbacks=[listen], resume=resume)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    result = train(tmp_path_factory.mktemp("reference") / "run", "clients.actors=1")
    assert result.status == "completed"
    return str(result.summary["model_sha256"])


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["clients.actors=3"], marks=pytest.mark.slow),
        pytest.param(["clients.placement=dedicated", "privacy.ledger=LEDGER"], marks=pytest.mark.slow),
    ],
    ids=["three", "dedicated"],
)
def test_with_other_placements(overrides: list[str], reference: str, tmp_path: Path) -> None:
    overrides = [o.replace("LEDGER", str(tmp_path / "books")) for o in overrides]
    assert train(tmp_path / "run", *overrides).summary["model_sha256"] == reference


@pytest.mark.slow
def test_with_two_actors_of_which_one_was_killed_in_mid_round(reference: str, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "clients.actors=2", at_round=1, then=lambda: kill("ClientHost.train"))
    assert result.summary["faults"]["actor_deaths"] == 1
    assert result.summary["faults"]["retries"] >= 1
    assert result.summary["model_sha256"] == reference


def rounds_of(output: Path) -> list[int]:
    rows = RunFiles(output).rows()
    assert all("eval/accuracy" in r["metrics"] for r in rows)
    return [r["round"] for r in rows]


@pytest.mark.slow
def test_after_the_driver_was_killed_it_goes_on_by_itself(reference: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = train(output, "clients.actors=2", at_round=1, then=lambda: kill("ray::Experiment"))
    assert result.summary["model_sha256"] == reference
    assert result.summary["faults"]["driver_restarts"] == 1
    assert rounds_of(output) == [1, 2, 3, 4, 5]


class Enough(Exception):
    pass


@pytest.mark.slow
def test_after_the_command_was_gone_and_the_run_resumed(reference: str, tmp_path: Path) -> None:
    def leave() -> None:
        raise Enough

    output = tmp_path / "run"
    with pytest.raises(Enough):
        train(output, "clients.actors=2", at_round=1, then=leave)
    result = train(output, "clients.actors=1", resume=True)  # waits until the driver, who was told to stop, is gone
    assert result.summary["model_sha256"] == reference
    assert rounds_of(output) == [1, 2, 3, 4, 5]


def test_a_round_does_not_depend_on_the_order_of_work(tmp_path: Path) -> None:
    """One round by hand, handed out in many orders: the expected sizes decide who comes first."""
    from fedray.choices import Resources
    from fedray.clients.placement import Place, start_actor
    from fedray.clients.terms import Site, make_terms

    config = load_config(DIGITS, [o for o in SMALL if not o.startswith("privacy")] + ["privacy={regime: none}"])
    prepared = prepare(config)
    assert prepared.model is not None
    assert prepared.federation is not None
    model, federation = prepared.model, ray.put(prepared.federation)
    group = prepared.groups[0]
    terms = make_terms(config, group, None, model.facts)
    places = [Place(f"p{i}", group.name, 0, Resources(cpu=0.5)) for i in range(2)]
    settings: Any = {"members": {group.name: range(4)}, "restarts": 0, "retries": 0, "grace": 1.0}
    pool = Pool(places, lambda place: start_actor(place, terms, Site(), federation), np.ones(4, np.int64), **settings)
    try:
        pool.wait_ready(60, everyone=True)
        weights, totals, shuffle = ray.put(model.weights.value), set(), random.Random(5)
        for _ in range(6):
            sizes = np.arange(1, 5, dtype=np.int64) * 1000
            shuffle.shuffle(sizes)
            pool.learn_sizes(sizes)
            total, notes = ExactSum.zero(model.facts.layout.size, 1e4), RoundLog()
            for part in pool.train([ClientTask(i, n) for i, n in enumerate(prepared.names)], RoundTask(0, 1e4), weights, notes):
                total.merge(part.total)
            assert total.count == 4
            totals.add(total.values.tobytes())
        assert len(totals) == 1
    finally:
        pool.shutdown()
