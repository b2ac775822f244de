"""Runs with silos outside the cluster, in processes of their own, against the same runs with an actor for each client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import kill
from remotesilos import HEART, HOSPITAL, SiloProcesses, silos

import fedray
from fedray.runfiles import RunFiles

pytestmark = pytest.mark.usefixtures("cluster")

NAMES = [f"client-{n:04d}" for n in range(4)]
DIGITS = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
AGREED: dict[str, Any] = {"holdout": {"fraction": 0.2, "at": "clients"}}
PLAIN: dict[str, Any] = {
    "training": {"lr": 0.5, "batch_size": 64, "epochs": 1},
    "evaluation": {"federated": True},
}
NOISED: dict[str, Any] = {
    "training": {"lr": 0.5, "sampling_rate": 0.2, "expected_batch": 60, "steps": 3},
    "privacy": {"regime": "record", "noise_multiplier": 1.0, "delta": 2e-4, "insecure_seed": 7},
    "evaluation": {"metrics": []},
}
SECURE: dict[str, Any] = {"secure": {"kind": "secagg", "fewest": 3}, "cohort": {"kind": "all", "min_clients": 3}}


def run(output: Path, data: dict[str, Any], clients: dict[str, Any], callbacks: tuple[Any, ...] = (), **sections: Any) -> fedray.Result:
    raw = {"name": output.name, "rounds": 2, "model": {"kind": "softmax"}, "tracking": {"enabled": False}}
    return fedray.run({**raw, "data": data, "clients": clients, **sections}, output=str(output), callbacks=callbacks)


def inside(output: Path, data: dict[str, Any], **sections: Any) -> fedray.Result:
    """The run with an actor for each client."""
    private = {"privacy": {**sections["privacy"], "ledger": str(output.parent / f"{output.name}.books")}} if "privacy" in sections else {}
    return run(output, {**data, **AGREED}, {"placement": "dedicated", "resources": {"cpu": 0.25}}, **{**sections, **private})


def outside(
    output: Path, names: list[str], classes: int, those: SiloProcesses, callbacks: tuple[Any, ...] = (), **sections: Any
) -> fedray.Result:
    """The same with silos outside, each of which charges its own ledger."""
    private = {"privacy": {**sections["privacy"], "ledger": "silos"}} if "privacy" in sections else {}
    data = {"source": f"silos:{','.join(names)}", "classes": classes, **AGREED}
    return run(output, data, those.clients, callbacks, **{**sections, **private})


def same(found: fedray.Result, expected: fedray.Result) -> None:
    assert found.status == expected.status == "completed"
    assert found.summary["model_sha256"] == expected.summary["model_sha256"]
    measured = [
        [{k: v for k, v in row["metrics"].items() if k.startswith("eval/")} for row in RunFiles(r.output).rows()] for r in (found, expected)
    ]
    assert measured[0] == measured[1]


def charges(those: SiloProcesses, name: str) -> list[dict[str, Any]]:
    """What a silo's own ledger says of its charges."""
    lines = (those.directory / name / "state" / "ledger" / f"{name}.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry.get("kind") == "reserve"]


def test_silos_outside_train_the_model_of_dedicated_actors_with_seeded_noise_under_a_secure_sum(tmp_path: Path) -> None:
    both = {**NOISED, **SECURE}
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS)) as those:
        same(outside(tmp_path / "noised", NAMES, 10, those, **both), inside(tmp_path / "as_noised", DIGITS, **both))
        for name in NAMES:
            assert [entry["round"] for entry in charges(those, name)] == [0, 1]
    assert not (tmp_path / "noised" / "ledger" / f"{NAMES[0]}.jsonl").exists()  # what the driver has is a copy of the run's part


@pytest.mark.slow
def test_silos_outside_train_the_model_of_dedicated_actors_twice(tmp_path: Path) -> None:
    """Two runs with the same silo processes, one after the other; the second is with noise under a secure sum."""
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS)) as those:
        same(outside(tmp_path / "plain", NAMES, 10, those, **PLAIN), inside(tmp_path / "as_plain", DIGITS, **PLAIN))
        both = {**NOISED, **SECURE}
        same(outside(tmp_path / "noised", NAMES, 10, those, **both), inside(tmp_path / "as_noised", DIGITS, **both))


def killed_silo(those: SiloProcesses) -> Callable[[str, Any], None]:
    def listen(kind: str, value: Any) -> None:
        if kind == "row" and value["round"] == 1:
            those.kill(NAMES[2])
            those.start(NAMES[2])

    return listen


def killed(title: str) -> Callable[[SiloProcesses], Callable[[str, Any], None]]:
    def listening(those: SiloProcesses) -> Callable[[str, Any], None]:
        def listen(kind: str, value: Any) -> None:
            if kind == "row" and value["round"] == 1:
                kill(title)

        return listen

    return listening


@pytest.mark.slow
@pytest.mark.parametrize(
    "listening",
    [killed_silo, killed("ray::SiloGateway"), killed("ray::RemoteClient"), killed("ray::Experiment")],
    ids=["silo", "gateway", "proxy", "driver"],
)
def test_whoever_is_killed_in_the_middle_the_run_ends_with_the_same_model(tmp_path: Path, listening: Any) -> None:
    cohort = {"kind": "all", "min_clients": 4}
    expected = inside(tmp_path / "expected", DIGITS, **PLAIN, cohort=cohort, rounds=4)
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS)) as those:
        found = outside(tmp_path / "found", NAMES, 10, those, (listening(those),), **PLAIN, cohort=cohort, rounds=4)
    same(found, expected)
    assert [row["metrics"]["round/clients_completed"] for row in RunFiles(found.output).rows()] == [4] * 4


@pytest.mark.slow
@pytest.mark.skipif(not HEART.is_dir(), reason=f"the four hospitals' files are not in {HEART}")
@pytest.mark.parametrize("sections", [PLAIN, NOISED, {**PLAIN, **SECURE, "evaluation": {"metrics": []}}], ids=["plain", "noised", "secure"])
def test_four_hospitals_on_their_own_train_what_four_actors_train(tmp_path: Path, sections: dict[str, Any]) -> None:
    names = sorted(path.stem for path in HEART.glob("*.csv"))
    model = {"model": {"kind": "logistic"}, "rounds": 3}
    training = {**sections["training"], "loss": "binary_cross_entropy"}
    if "batch_size" in training:
        training["batch_size"] = 4
    privacy = {"privacy": {**sections["privacy"], "delta": 1e-4}} if "privacy" in sections else {}
    sections = {**sections, **model, **privacy, "training": training}
    expected = inside(tmp_path / "expected", {"source": f"csv:{HEART}", **HOSPITAL}, **sections)
    with silos(tmp_path, {name: {"source": f"csv:{HEART / name}.csv", **HOSPITAL} for name in names}) as those:
        same(outside(tmp_path / "found", names, 2, those, **sections), expected)
