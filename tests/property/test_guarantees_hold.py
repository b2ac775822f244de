"""Each combination that is allowed keeps what it promises: whole runs of the driver, its books and its clients, in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combinedparts import CLASSES
from virtualray import drive

from fedray import components
from fedray.clients import adding
from fedray.clients.messages import ClientTask
from fedray.clients.trainer import Trainer
from fedray.config import Config
from fedray.configfile import build_config
from fedray.planning.compatibility import Feature, features, grounds, merged, verdict
from fedray.privacy.ledger.chain import read
from fedray.privacy.mechanisms import discrete
from fedray.privacy.mechanisms.distributed import RingStep
from fedray.privacy.mechanisms.local_noise import GaussianStep, LocalGaussian
from fedray.secure.bfv import Bfv
from fedray.secure.ckks import Ckks
from fedray.secure.consortium import make_consortium_key
from fedray.updates.pipeline import passed_all
from fedray.updates.stage import At, Stage

PROTOCOLS = frozenset(components.PROTOCOLS.parts())
ENCRYPTING, FEW = ("bfv", "ckks"), ("fedavg", "scaffold", "weights by records", "regime [record, client]")
NO_RECORD_IS_DRAWN = {"sampling_rate": 1e-12, "expected_batch": 1.0, "steps": 2}


#: Every combination that is allowed.
ALLOWED = [
    (f, ground, found.sections) for f in features() for ground in grounds() if (found := verdict(f, ground)) is not None and found.allowed
]


def cells(*wanted: str) -> list[Any]:
    """The allowed combinations in these columns, with their config's sections. Encryption is slow, and has a few of its cells tested at once."""
    return [
        pytest.param(f, ground, s, id=f"{ground}-{f.name}", marks=[pytest.mark.slow] if ground in ENCRYPTING and f.name not in FEW else [])
        for f, ground, s in ALLOWED
        if ground in wanted
    ]


def config_of(sections: dict[str, Any], more: dict[str, Any], **arguments: bool) -> Config:
    survival = sections["training"].get("loss") == "cox"
    data = {"source": "python:combinedparts:data", "classes": None if survival else CLASSES, "survival": survival, **arguments}
    if "normalize" in sections["data"]:
        data |= {"normalize": sections["data"]["normalize"], "holdout": {"at": "clients"}, "tested": False}
    if sections["evaluation"].get("federated"):
        data |= {"holdout": {"at": "clients"}, "tested": False}
        more = merged(more, {} if "charged" in sections["evaluation"] else {"evaluation": {"metrics": ["loss"]}})
    loss = sections["training"].get("loss")
    if isinstance(loss, dict) and "counts" in loss:
        more = merged(more, {"training": {"loss": {"counts": loss["counts"][:CLASSES]}}})
    if "augment" in sections["training"]:
        data |= {"images": True}
    if "person" in sections["data"]:
        data |= {"persons": True}
    if "privacy" in sections:
        sections = merged(sections, {"privacy": {"insecure_seed": 1}})
    return build_config({**merged(sections, more), "data": data, "seed": 3, "rounds": 2})


def run(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The model; with one actor, so that who is first, where that counts, is the same each time."""
    with np.errstate(over="ignore"):  # of updates that are wild on purpose
        return drive(config, folder, lambda client: 1.0, 1, monkeypatch)[2]


def same(one: np.ndarray, other: np.ndarray, sections: dict[str, Any]) -> bool:
    """Whether two models have the same bytes, or under the one protocol whose sums have errors are within these."""
    if sections.get("secure", {}).get("kind") == "ckks":
        return bool(np.abs(one - other).max() <= 1e-4 * np.abs(other).max())
    return one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key for each protocol that encrypts, by its name."""
    where = tmp_path_factory.mktemp("keys")
    if find_spec("tenseal") is not None:
        for protocol in (Bfv, Ckks):
            make_consortium_key(protocol.scheme, where / protocol.scheme.name)
    return where


@pytest.fixture
def sections(request: pytest.FixtureRequest, keys: Path) -> dict[str, Any]:
    """Of a combination, with a key where it takes one."""
    given: dict[str, Any] = request.param
    kind = given.get("secure", {}).get("kind")
    if kind not in ("bfv", "ckks"):
        return given
    pytest.importorskip("tenseal", reason="the extra 'encrypted' is not installed")
    return merged(given, {"secure": {"kind": kind, "key": str(keys / kind)}})


@pytest.mark.parametrize(("feature", "ground", "sections"), cells("record"), indirect=["sections"])
def test_what_leaves_follows_from_charged_noised_training_alone(
    feature: Feature, ground: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record is drawn, so nothing may depend on what the records are."""
    turns = Counter[str]()
    whole = Trainer._run

    def counted(self: Trainer, task: Any, weights: Any, client: ClientTask, *rest: Any) -> Any:
        turns[client.name] += client.name != "root"  # of which the driver's own public records train
        return whole(self, task, weights, client, *rest)

    more = {"training": NO_RECORD_IS_DRAWN}
    if feature.name == "semi_synchronous":
        more |= {"pacing": {"arrival": "simulated"}}  # or it would be chance who is first
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run", counted)
        one = run(config_of(sections, more), tmp_path / "a", patch)
    other = run(config_of(sections, more, other=True), tmp_path / "b", monkeypatch)
    assert same(one, other, sections)
    entries = [e.data for e in read(tmp_path / "a/ledger/records.jsonl") if e.kind == "reserve"]
    assert turns and turns <= Counter(e["subject"] for e in entries if "purpose" not in e)


def test_records_that_are_drawn_do_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test before this one can fail."""
    drawn = {"training": {"sampling_rate": 1.0, "expected_batch": 8.0, "steps": 2}}
    (found,) = [sections for feature, ground, sections in ALLOWED if (feature.name, ground) == ("fedavg", "record")]
    sections = merged(found, drawn)
    one, other = (run(config_of(sections, {}, other=other), tmp_path / str(other), monkeypatch) for other in (False, True))
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(("feature", "ground", "sections"), cells("client", "local", "distributed"), indirect=["sections"])
def test_what_a_client_adds_is_within_the_clip_norm(
    feature: Feature, ground: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its training makes of the model; noise is taken away, so that what it hides is seen."""
    sent = list[tuple[Sequence[Stage], float]]()

    def seen(stages: Sequence[Stage], update: Any, at: At, kept: Any) -> Any:
        (position,) = [n for n, stage in enumerate(stages) if stage.place == "linear"]
        before, after = stages[:position], stages[position + 1 :]
        assert all(stage.place == "lossy" for stage in after) and (not after or ground == "local")  # they see what is private
        assert ground != "local" or not any(stage.place == "lossy" for stage in before)
        assert any(stage.weighs or stage.integer for stage in stages)  # no weight multiplies what was clipped
        mechanism = stages[position]
        values = passed_all(stages[: position + 1], update, at, kept).values.astype(np.float64)
        if isinstance(mechanism, RingStep):
            values = (values + mechanism.grid.half_ring) % (2 * mechanism.grid.half_ring) - mechanism.grid.half_ring
            bound = mechanism.grid.l2
        else:
            bound = mechanism.clip  # type: ignore[attr-defined]
            if "adaptive_clip" in sections["privacy"]:
                assert abs(values[-1]) == 0.5
                values = values[:-1]
        sent.append((stages, float(np.linalg.norm(values)) / bound))
        return passed_all(stages, update, at, kept)

    monkeypatch.setattr(adding, "passed_all", seen)
    monkeypatch.setattr(discrete, "integer_noise", lambda kind, sigma, n, source: np.zeros(n, dtype=np.int64))
    monkeypatch.setattr(LocalGaussian, "client", lambda self, z, clip, facts, bit, round_: GaussianStep(clip, 0.0))
    more = {"training": {"engine": "python:combinedparts:wild"}}
    if sections["privacy"]["regime"] != ground:  # records are protected, too, by engines that are known
        more = {"training": {"lr": 1e6, "sampling_rate": 1.0, "expected_batch": 8.0, "steps": 2}}
    elif feature.name in ("loss cox", "perfedavg", "precision bf16", "augment"):  # some things only engines that are known can do
        more = {"training": {**sections["training"], "lr": 1e6}}
    elif feature.name == "weights by records":
        more |= {"privacy": {"weight_cap": 10}}
    run(config_of(sections, more), tmp_path / "run", monkeypatch)
    norms = [norm for _, norm in sent]
    assert max(norms) <= 1 + 1e-6
    assert max(norms) > 0.5  # an update was large


@pytest.mark.parametrize(("feature", "ground", "sections"), cells(*sorted(PROTOCOLS)), indirect=["sections"])
def test_a_secure_sum_is_the_sum(
    feature: Feature, ground: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {key: value for key, value in sections.items() if key != "secure"}
    masked, clear = (run(config_of(s, {}), tmp_path / n, monkeypatch) for s, n in ((sections, "masked"), (plain, "clear")))
    assert same(masked, clear, sections)


@pytest.mark.parametrize(
    ("feature", "ground", "sections"),
    [c for c in cells("record", "client", "local", "distributed") if c.values[0].section == "protocols"],
    indirect=["sections"],
)
def test_a_secure_sum_beside_a_regime_is_the_sum(
    feature: Feature, ground: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_secure_sum_is_the_sum(feature, ground, sections, tmp_path, monkeypatch)
