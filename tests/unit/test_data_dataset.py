"""The composition: hold-outs, transforms, one client alone against the whole federation, determinism, reports."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clients.messages import HostInfo
from fedray.config import Data
from fedray.configfile import build_config
from fedray.data.dataset import check, client_names, load_client, load_federation, per_silo, private_statistics
from fedray.data.records import Records
from fedray.data.silos import Silo
from fedray.data.skew import class_counts, label_distance, partition_report
from fedray.data.transforms import TRANSFORMS, Transform
from fedray.errors import DataError, PrivacyRefusal
from fedray.experiment.silo_facts import complete
from fedray.planning.preparation import prepare
from fedray.queries.preparedquery import prepare_query
from fedray.queryconfig import QueryConfig


def section(source: str = "sklearn:digits", **keys: Any) -> Data:
    return Data.model_validate({"source": source, "partition": {"kind": "dirichlet", "alpha": 0.5, "clients": 7}, **keys})


def same(a: Records | None, b: Records | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.x.dtype == b.x.dtype and a.x.tobytes() == b.x.tobytes() and a.x.shape == b.x.shape and a.y.tobytes() == b.y.tobytes()


@pytest.fixture
def silos(tmp_path: Path) -> str:
    draws = np.random.default_rng(0)
    for name, n in (("north", 20), ("south", 1), ("west", 7)):
        rows = [
            f"{u:.3f},{v:.3f},5,{y}" for u, v, y in zip(draws.normal(size=n), draws.normal(size=n), draws.integers(0, 2, n), strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("u,v,c,y\n" + "\n".join(rows) + "\n")
    return f"csv:{tmp_path}"


SECTIONS: dict[str, dict[str, Any]] = {
    "driver": {},
    "none": {"holdout": {"fraction": 0.0}},
    "clients": {"holdout": {"at": "clients", "fraction": 0.3}},
    "unstratified": {"holdout": {"stratify": False}},
    "unit_norm": {"normalize": {"kind": "unit_norm"}},
    "constants": {"normalize": {"kind": "constants", "mean": 0.3, "std": [0.5] * 64}},
    "standardize": {"normalize": {"kind": "standardize_client"}, "holdout": {"at": "clients"}},
    "single records": {"normalize": {"kind": "unit_norm"}, "partition": {"kind": "iid", "clients": 1438}},
}


@pytest.mark.parametrize("keys", SECTIONS.values(), ids=SECTIONS.keys())
def test_a_client_alone_gets_the_bytes_of_the_federation(keys: dict[str, Any]) -> None:
    data = section(**keys)
    f = load_federation(data, 3)
    assert client_names(data, 3) == f.names
    for k in sorted({0, len(f.names) // 2, len(f.names) - 1}):
        alone, part = load_client(data, 3, f.names[k]), f.client(k)
        assert same(alone.train, part.train)
        assert same(alone.test, part.test)
        assert (alone.name, alone.classes, alone.columns) == (part.name, part.classes, part.columns)


@pytest.mark.parametrize("normalize", ["none", "standardize_client", "unit_norm"])
def test_a_silo_alone_gets_the_bytes_of_the_federation(silos: str, normalize: str) -> None:
    data = Data.model_validate({"source": silos, "label": "y", "classes": 2, "normalize": {"kind": normalize}})
    f = load_federation(data, 3)
    assert per_silo(data)
    assert f.test is None
    assert f.sizes.tolist() == [16, 1, 6]  # the silo with one record keeps it
    assert f.client(1).test is None
    for k, name in enumerate(f.names):
        alone = load_client(data, 3, name)
        assert same(alone.train, f.client(k).train)
        assert same(alone.test, f.client(k).test)


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    data = section(holdout={"at": "clients"}, normalize={"kind": "unit_norm"})
    program = (
        "import sys; from fedray.config import Data; from fedray.data.dataset import load_federation; "
        "print(load_federation(Data.model_validate_json(sys.argv[1]), 5).digest)"
    )
    run = subprocess.run([sys.executable, "-c", program, data.model_dump_json()], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == load_federation(data, 5).digest
    assert load_federation(data, 6).digest != load_federation(data, 5).digest


def test_digest_sees_every_part() -> None:
    f = load_federation(section(), 0)
    parts = {name: getattr(f, name) for name in f.__dataclass_fields__}
    digests = {f.digest}
    x = f.train.x.copy()
    x[-1, -1] += 1
    changed = [
        {"names": [*f.names[:-1], "other"]},
        {"train": Records(x, f.train.y)},
        {"train": Records(f.train.x, f.train.y[::-1])},
        {"offsets": f.offsets + np.int64(0) * f.offsets + (np.arange(len(f.offsets)) == 1)},
        {"test": None},
        {"client_test": f.test, "test": None},
        {"classes": 11},
        {"columns": ()},
    ]
    for change in changed:
        digests.add(type(f)(**(parts | change)).digest)
    assert len(digests) == len(changed) + 1
    assert pickle.loads(pickle.dumps(f)).digest == f.digest


def test_holdout_at_the_driver_splits_before_the_partition() -> None:
    f = load_federation(section(holdout={"fraction": 0.25}), 0)
    whole = load_federation(section(partition={"kind": "iid", "clients": 1}, holdout={"fraction": 0.0}), 0)
    assert f.test is not None
    assert len(f.test) == 449
    assert len(f.train) == 1797 - 449
    rows = np.concatenate([f.train.x, f.test.x])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], whole.train.x[np.lexsort(whole.train.x.T)])
    share = np.bincount(whole.train.y) * 449 / 1797
    assert np.abs(np.bincount(f.test.y) - share).max() < 1
    assert f.client_test is None
    assert f.client(0).test is None


def test_holdout_at_clients_is_each_clients_own() -> None:
    f = load_federation(section(holdout={"fraction": 0.25, "at": "clients"}), 0)
    plain = load_federation(section(holdout={"fraction": 0.0}), 0)
    assert f.test is None
    for k in range(7):
        client, all_records = f.client(k), plain.client(k)
        assert client.test is not None
        assert len(client.test) == int(0.25 * len(all_records.train) + 0.5)
        assert len(client.train) + len(client.test) == len(all_records.train)
        rows = np.concatenate([client.train.x, client.test.x])
        np.testing.assert_array_equal(rows[np.lexsort(rows.T)], all_records.train.x[np.lexsort(all_records.train.x.T)])


def test_clients_with_equal_records_hold_out_different_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("u,y\n" + "".join(f"{i},{i % 2}\n" for i in range(100)))
    data = Data.model_validate({"source": f"csv:{tmp_path}", "label": "y", "classes": 2})
    tests = [load_client(data, 0, name).test for name in ("a", "b")]
    assert not same(*tests)


def test_natural_clients_keep_a_record_for_training(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.eye(6), y_train=np.arange(6) % 2, who=np.array(["a", "b", "c", "c", "d", "e"]))
    for seed in range(5):
        data = Data.model_validate({"source": f"npz:{tmp_path}/a.npz", "clients": "who", "holdout": {"fraction": 0.9}})
        f = load_federation(data, seed)
        assert f.names == client_names(data, seed) == ["a", "b", "c", "d", "e"]
        assert f.sizes.tolist() == [1] * 5
        assert f.test is not None
        assert len(f.test) == 1


def test_training_records_are_views_and_not_copies() -> None:
    f = load_federation(section(), 0)
    assert np.shares_memory(f.client(3).train.x, f.train.x)
    assert np.shares_memory(f.client(3).train.y, f.train.y)
    assert f.train.x.flags.c_contiguous


def test_unknown_and_unnatural_clients() -> None:
    with pytest.raises(DataError, match=r"no client 'client-9' among its 7"):
        load_client(section(), 0, "client-9")
    with pytest.raises(DataError, match=r"this source has no natural clients"):
        client_names(section(partition={"kind": "natural"}), 0)
    with pytest.raises(DataError, match=r"data.partition.clients: 2000 clients for 1438 training records"):
        load_federation(section(partition={"kind": "iid", "clients": 2000}), 0)


# ---------------------------------------------------------------- transforms


def test_unit_norm() -> None:
    x = np.random.default_rng(0).normal(size=(9000, 2, 3)).astype(np.float32)
    x[5] = 0
    out = TRANSFORMS["unit_norm"]().fit(x[:0])(x.copy())
    norms = np.sqrt((out.astype(np.float64) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(np.delete(norms, 5), 1, rtol=1e-6)
    assert (out[5] == 0).all()
    # One record at a time: alone it comes out the same.
    assert TRANSFORMS["unit_norm"]().fit(x[:0])(x[8999:].copy()).tobytes() == out[8999:].tobytes()


def test_constants_by_name_are_those_of_the_features_wherever_they_stand(silos: str, tmp_path: Path) -> None:
    def normalized(**constants: Any) -> Data:
        return section(
            silos,
            label="y",
            classes=2,
            categories={"c": [5, 6]},
            partition={"kind": "natural"},
            normalize={"kind": "constants", **constants},
        )

    listed = normalized(mean=[1.0, 2.0, 0.5, 0.0], std=[0.5, 4.0, 1.0, 2.0])
    mean, std = {"c=6": 0.0, "v": 2.0, "u": 1.0, "c=5": 0.5}, {"u": 0.5, "v": 4.0, "c=5": 1.0, "c=6": 2.0}
    named = normalized(mean=mean, std=std)
    assert load_federation(listed, 0).columns == ("u", "v", "c=5", "c=6")
    assert same(load_federation(listed, 0).train, load_federation(named, 0).train)
    assert same(load_client(listed, 0, "west").train, load_client(named, 0, "west").train)
    assert same(
        load_client(normalized(mean=mean, std=2.0), 0, "west").train,
        load_client(normalized(mean=[1.0, 2.0, 0.5, 0.0], std=2.0), 0, "west").train,
    )
    for wrong, says in (
        ({"mean": mean | {"w": 1.0}}, r"data\.normalize\.mean: there is no feature 'w'; the features are u, v, c=5, c=6\."),
        (
            {"std": {"u": 1.0, "c=5": 2.0}},
            r"data\.normalize\.std: has no value for 'v', 'c=6'; the features are u, v, c=5, c=6: name each of them\.",
        ),
    ):
        with pytest.raises(DataError, match=says):
            load_client(normalized(**wrong), 0, "west")
    with pytest.raises(DataError, match=r"data\.normalize\.std: should be above 0"):
        check(normalized(std=std | {"v": 0.0}))
    np.savez(tmp_path / "images.npz", x_train=np.ones((20, 4), dtype=np.float32), y_train=np.arange(20) % 2)
    with pytest.raises(DataError, match="those of these records have no names"):
        load_federation(
            section(f"npz:{tmp_path}/images.npz", partition={"kind": "iid", "clients": 2}, normalize={"kind": "constants", "mean": mean}), 0
        )


def test_a_number_of_dropped_records_is_told_without_privacy_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,y\n" + "\n".join(f"{'' if k < 3 else k},{k % 2}" for k in range(20)) + "\n")
    (tmp_path / "b.csv").write_text("u,y\n" + "\n".join(f"{k},{k % 2}" for k in range(20)) + "\n")
    data = {"source": f"csv:{tmp_path}", "label": "y", "classes": 2, "missing_rows": "drop", "holdout": {"at": "driver", "fraction": 0.25}}
    config = {"name": "x", "rounds": 1, "data": data, "model": {"kind": "softmax"}, "evaluation": {"federated": True}}
    plain = config | {"training": {"batch_size": 4, "epochs": 1}}
    said = "data.missing_rows=drop: 3 of 40 records are left out"
    told = prepare(build_config(plain)).warnings
    assert any(text.startswith(said) for text in told)
    assert any(text.startswith("data.holdout.at=driver: in csv:") for text in told)
    silos = [load_client(build_config(plain).data, 0, name) for name in "ab"]
    assert [Silo.of(silo, private=False).dropped for silo in silos] == [3, 0]
    assert [Silo.of(silo).dropped for silo in silos] == [0, 0]
    alone = prepare(build_config(plain | {"clients": {"placement": "dedicated"}}))
    infos = [HostInfo("n", 1, "cpu", 1, Silo.of(silo, private=False)) for silo in silos]
    assert any(text.startswith(said) for text in complete(alone, infos).warnings)
    private = config | {
        "training": {"sampling_rate": 0.5, "steps": 1, "expected_batch": 7},
        "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-3},
        "evaluation": {"metrics": []},
        "data": data | {"holdout": {"fraction": 0.25}},
    }
    told = prepare(build_config(private)).warnings
    assert not any("of 40" in text or "holdout" in text for text in told)
    assert any("is not told, for it is a fact about private records" in text for text in told)


def test_constants_by_channel() -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    out = TRANSFORMS["constants"](mean=[1.0, 2.0], std=[0.5, 4.0]).fit(x[:0])(x.copy())
    np.testing.assert_allclose(out[:, 0], (x[:, 0] - 1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(out[:, 1], (x[:, 1] - 2) / 4, rtol=1e-6)
    with pytest.raises(DataError, match=r"data\.normalize\.mean: has 3 values, but records of shape \(2, 3, 3\) have 2 channels"):
        TRANSFORMS["constants"](mean=[1.0, 2.0, 3.0]).fit(x[:0])(x)


def test_standardize_client_uses_the_clients_own_training_part(silos: str) -> None:
    keys = {"source": silos, "label": "y", "classes": 2}
    f = load_federation(Data.model_validate({**keys, "normalize": {"kind": "standardize_client"}}), 0)
    raw = load_federation(Data.model_validate(keys), 0)
    for k in (0, 2):
        train, test = raw.client(k).train.x.astype(np.float64), raw.client(k).test
        assert test is not None
        mean, std = train.mean(axis=0), train.std(axis=0)
        np.testing.assert_allclose(f.client(k).train.x[:, :2], (train[:, :2] - mean[:2]) / std[:2], rtol=1e-5, atol=1e-6)
        own_test = f.client(k).test
        assert own_test is not None
        np.testing.assert_allclose(own_test.x[:, :2], (test.x[:, :2] - mean[:2]) / std[:2], rtol=1e-5, atol=1e-6)
    assert (f.train.x[:, 2] == 0).all()  # a constant column
    assert (f.client(1).train.x == 0).all()  # a single record is its own mean


def test_only_statistics_over_records_are_called_private() -> None:
    private = {name for name in TRANSFORMS if private_statistics(section(normalize={"kind": name}, holdout={"at": "clients"}))}
    assert private == {"standardize_client"}


def test_a_public_transform_is_given_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fit(train: Any) -> Any:
        seen.append(len(train))
        return lambda x: x * 2

    module = types.ModuleType("my_transforms")
    module.double, module.broken = lambda: Transform(fit), lambda: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_transforms", module)
    f = load_federation(section(normalize={"kind": "python:my_transforms:double"}), 0)
    np.testing.assert_array_equal(f.train.x, 2 * load_federation(section(), 0).train.x)
    load_client(section(normalize={"kind": "python:my_transforms:double"}), 0, "client-0001")
    assert set(seen) == {0}
    with pytest.raises(DataError, match="should return a"):
        check(section(normalize={"kind": "python:my_transforms:broken"}))


def test_standardize_client_is_refused_where_the_driver_has_a_test_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.eye(6), y_train=np.arange(6) % 2, x_test=np.eye(6), y_test=np.arange(6) % 2)
    data = section(
        f"npz:{tmp_path}/a.npz",
        partition={"kind": "iid", "clients": 2},
        holdout={"at": "clients"},
        normalize={"kind": "standardize_client"},
    )
    with pytest.raises(DataError, match="uses each client's own statistics, which the driver's test set does not have"):
        load_federation(data, 0)


# ---------------------------------------------------------------- the user's own parts


def test_a_users_silo_class(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Silos:
        def __init__(self, n: int, classes: int | None = 3) -> None:
            self.n, self.classes = n, classes

        def clients(self) -> list[str]:
            return ["x", "z"]

        def load(self, client: str) -> Any:
            loaded.append(client)
            return np.ones((self.n, 2)), [0] * self.n

    class Wrong:
        def clients(self) -> list[str]:
            return ["x"]

    module = types.ModuleType("my_silos")
    module.Silos, module.Wrong = Silos, Wrong  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_silos", module)
    data = Data.model_validate({"source": "python:my_silos:Silos", "n": 5})
    assert per_silo(data)
    assert client_names(data, 0) == ["x", "z"]
    assert not loaded
    client = load_client(data, 0, "z")
    assert loaded == ["z"]
    assert (len(client.train), len(client.test or []), client.classes) == (4, 1, 3)
    regression = load_client(Data.model_validate({"source": "python:my_silos:Silos", "n": 5, "classes": None}), 0, "z")
    assert (regression.classes, regression.train.y.dtype) == (None, np.float32)
    with pytest.raises(DataError, match=r"a class needs clients\(\), load\(client\) and classes"):
        check(Data.model_validate({"source": "python:my_silos:Wrong"}))


def test_a_users_partitioner(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_parts")
    module.halves = lambda labels, groups, draws, cut: [np.arange(cut), np.arange(cut, len(labels))]  # type: ignore[attr-defined]
    module.twice = lambda labels, groups, draws: [[0, 1], [1, 2]]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_parts", module)
    data = section(partition={"kind": "python:my_parts:halves", "cut": 100})
    assert load_federation(data, 0).sizes.tolist() == [100, 1338]
    assert client_names(data, 0) == ["client-0000", "client-0001"]
    with pytest.raises(DataError, match="may go to one client only"):
        load_federation(section(partition={"kind": "python:my_parts:twice"}), 0)


# ---------------------------------------------------------------- reports


def test_partition_report() -> None:
    f = load_federation(section(), 0)
    counts = class_counts(f)
    assert counts.dtype == np.int64
    for k in range(7):
        np.testing.assert_array_equal(counts[k], np.bincount(f.client(k).train.y, minlength=10))
    report = partition_report(f.names, f.sizes, counts)
    assert json.loads(json.dumps(report)) == report
    assert (report["clients"], report["records"]) == (7, 1438)
    assert report["rows"][2] == {"client": "client-0002", "records": int(f.sizes[2]), "classes": counts[2].tolist()}
    hidden = partition_report(f.names, f.sizes, None)
    assert hidden["label_distance"] is None
    assert hidden["rows"][2] == {"client": "client-0002", "records": int(f.sizes[2])}


def test_label_distance_is_total_variation() -> None:
    assert label_distance(np.array([[5, 5], [50, 50]])) == 0
    assert label_distance(np.array([[4, 0], [0, 4]])) == 0.5
    assert label_distance(np.array([[3, 1], [1, 3]])) == pytest.approx(0.25)


def test_regression_has_no_class_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.eye(6), y_train=np.arange(6) / 2)
    f = load_federation(section(f"npz:{tmp_path}/a.npz", partition={"kind": "quantity", "clients": 2}), 0)
    assert (f.classes, len(f.test or [])) == (None, 1)
    with pytest.raises(DataError, match="regression"):
        class_counts(f)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(0, 59), st.integers(0, 3), st.integers(0, 20))
def test_a_silo_holds_out_whatever_its_labels_are(labels: list[int], which: int, label: int, seed: int) -> None:
    """With another label of one record no other record changes sides, which the guarantee for one record needs."""
    changed = list(labels)
    changed[which % len(labels)] = label
    kept = []
    for ys in (labels, changed):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.csv").write_text("u,y\n" + "".join(f"{k},{y}\n" for k, y in enumerate(ys)))
            found = load_client(section(f"csv:{folder}", label="y", classes=4, partition={"kind": "natural"}), seed, "a")
        kept.append(found.train.x.ravel().tolist())
    assert kept[0] == kept[1]
    assert len(kept[0]) == len(labels) - int(0.2 * len(labels) + 0.5)


@pytest.mark.parametrize("placed", ["silos", "silos in shared actors", "hosted"])
def test_a_split_by_labels_at_clients_whose_records_are_protected_is_refused(placed: str, silos: str, tmp_path: Path) -> None:
    at = {"fraction": 0.2, "stratify": True}
    data = {"source": silos, "label": "y", "classes": 2, "holdout": at}
    if placed == "hosted":
        data = {"source": "sklearn:digits", "classes": 10, "partition": {"kind": "iid", "clients": 3}, "holdout": at | {"at": "clients"}}
    private = {
        "privacy": {"regime": "record", "target_epsilon": 4.0, "delta": 1e-4, "ledger": str(tmp_path)},
        "evaluation": {"metrics": []},
    }
    training = {"sampling_rate": 0.2, "steps": 5, "expected_batch": 4}
    run = {"name": "x", "rounds": 1, "model": {"kind": "softmax"}, "data": data, "training": training}
    run |= {"clients": {"placement": "dedicated"}} if placed == "silos" else {}
    with pytest.raises(
        PrivacyRefusal, match=r"^\[privacy.incompatible.record.stratified\] data.holdout.stratify: .*; set data.holdout.stratify=false"
    ):
        prepare(build_config(run | private))
    query = {
        "name": "q",
        "data": data,
        "privacy": private["privacy"],
        "queries": {"n": {"kind": "count"}},
        "clients": run.get("clients", {}),
    }
    with pytest.raises(PrivacyRefusal, match="record.stratified"):
        prepare_query(build_config(query, QueryConfig))
    assert prepare(build_config(run | {"evaluation": {"federated": True}})).plans == [None]  # nothing is protected
    assert prepare(build_config(run | private | {"data": data | {"holdout": at | {"stratify": False}}})).plans[0] is not None
