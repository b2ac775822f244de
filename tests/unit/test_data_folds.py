"""Natural clients with a fixed test set, by every source; what silos must agree on; hold-outs that hold something."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedray.config import Data
from fedray.data.dataset import load_client, load_federation, silo_test
from fedray.data.records import Federation
from fedray.data.silos import Silo, check_silos
from fedray.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FRAME = pd.DataFrame({"u": [1.0, 2, 3, 4, 5, 6], "who": ["a", "b", "a", "b", "a", "b"], "label": [0, 1, 1, 0, 1, 1]})
TRAIN, TEST = {"a": [1, 3], "b": [2, 4]}, {"a": [5], "b": [6]}
ARRAYS = {
    "a": (np.array([[1.0], [3]]), np.array([0, 1]), np.array([[5.0]]), np.array([1])),
    "b": (np.array([[2.0], [4]]), np.array([1, 0]), np.array([[6.0]]), np.array([1])),
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("my_folds")
    monkeypatch.setitem(sys.modules, "my_folds", module)
    return module


def section(source: str, at: str = "driver", **arguments: Any) -> Data:
    return Data.model_validate({"source": source, "holdout": {"at": at}, **arguments})


def held(f: Federation) -> dict[str, list[float]]:
    """Each client's own test records."""
    return {name: test.x[:, 0].tolist() for k, name in enumerate(f.names) for test in [f.client(k).test] if test is not None}


def trained(f: Federation) -> dict[str, list[float]]:
    return {name: f.client(k).train.x[:, 0].tolist() for k, name in enumerate(f.names)}


def sources(folder: Path, module: Any) -> dict[str, dict[str, Any]]:
    """The same clients and test set in every way to say so."""
    folded = FRAME.assign(part=["train"] * 4 + ["test"] * 2)
    folded.to_csv(folder / "fold.csv", index=False)
    folded.assign(part=[0, 0, 1, 1, 9, 9]).to_csv(folder / "numbers.csv", index=False)
    FRAME[:4].to_csv(folder / "train.csv", index=False)
    FRAME[4:].to_csv(folder / "test.csv", index=False)
    pq.write_table(pa.Table.from_pandas(folded), folder / "fold.parquet")
    (folder / "parts").mkdir()
    pq.write_table(pa.Table.from_pandas(FRAME[:4], preserve_index=False), folder / "parts" / "train.parquet")
    pq.write_table(pa.Table.from_pandas(FRAME[4:][["label", "who", "u"]], preserve_index=False), folder / "parts" / "test.parquet")
    x, y, who = FRAME[["u"]].to_numpy(), FRAME["label"].to_numpy(), FRAME["who"].to_numpy(dtype=str)
    np.savez(folder / "a.npz", x_train=x[:4], y_train=y[:4], who=who[:4], x_test=x[4:], y_test=y[4:], who_test=who[4:])
    module.give = lambda: ARRAYS
    return {
        "csv fold": {"source": f"csv:{folder}/fold.csv", "label": "label", "silo": "who", "fold": "part"},
        "csv test_fold": {"source": f"csv:{folder}/numbers.csv", "label": "label", "silo": "who", "fold": "part", "test_fold": 9},
        "csv test": {"source": f"csv:{folder}/train.csv", "label": "label", "silo": "who", "test": f"{folder}/test.csv"},
        "parquet fold": {"source": f"parquet:{folder}/fold.parquet", "silo": "who", "fold": "part", "test_fold": ["test"]},
        "parquet files": {"source": f"parquet:{folder}/parts", "silo": "who"},
        "npz": {"source": f"npz:{folder}/a.npz", "clients": "who", "clients_test": "who_test"},
        "python": {"source": "python:my_folds:give"},
    }


@pytest.mark.parametrize("kind", ["csv fold", "csv test_fold", "csv test", "parquet fold", "parquet files", "npz", "python"])
def test_natural_clients_with_a_fixed_test_set(tmp_path: Path, own: Any, kind: str) -> None:
    arguments = sources(tmp_path, own)[kind]
    f = load_federation(section(**arguments), 0)
    assert (trained(f), held(f)) == (TRAIN, {})
    assert f.test is not None
    assert (f.test.x[:, 0].tolist(), f.test.y.tolist()) == ([5, 6], [1, 1])
    there = section(at="clients", **arguments)
    f = load_federation(there, 0)
    assert (trained(f), held(f), f.test) == (TRAIN, TEST, None)
    for k, name in enumerate(f.names):
        alone, among = load_client(there, 0, name), f.client(k)
        assert alone.test is not None and among.test is not None
        assert (alone.train.x.tobytes(), alone.test.x.tobytes()) == (among.train.x.tobytes(), among.test.x.tobytes())
        assert (alone.test.y.tolist(), among.test.y.tolist()) == ([1], [1])


def test_a_clients_own_test_set_is_normalised_as_its_training_set(own: Any) -> None:
    own.give = lambda: ARRAYS
    f = load_federation(section("python:my_folds:give", "clients", normalize={"kind": "standardize_client"}), 0)
    assert held(f) == {"a": [3.0], "b": [3.0]}  # (5 - 2) / 1 and (6 - 3) / 1
    with pytest.raises(DataError, match="the driver's test set does not have"):
        load_federation(section("python:my_folds:give", normalize={"kind": "standardize_client"}), 0)


def test_an_entry_test_is_the_drivers_test_set(own: Any) -> None:
    own.give = lambda: {**{name: four[:2] for name, four in ARRAYS.items()}, "test": (np.array([[7.0]]), [0])}
    for at in ("driver", "clients"):
        f = load_federation(section("python:my_folds:give", at), 0)
        assert (trained(f), held(f)) == (TRAIN, {})
        assert f.test is not None
        assert f.test.x.tolist() == [[7.0]]
    own.give = lambda: {**ARRAYS, "test": (np.array([[7.0]]), [0])}
    with pytest.raises(DataError, match=r"client a has a test set of its own, but there is 'test', too"):
        load_federation(section("python:my_folds:give"), 0)
    own.give = lambda: {"a": ARRAYS["a"], "b": ARRAYS["b"][:2]}
    with pytest.raises(DataError, match=r"client a has a test set of its own, but client b has none"):
        load_federation(section("python:my_folds:give"), 0)
    own.give = lambda: {"a": ARRAYS["a"], "b": (*ARRAYS["b"][:3], [1, 0])}
    with pytest.raises(DataError, match=r"client b\) \(test set\): 1 records but 2 labels"):
        load_federation(section("python:my_folds:give"), 0)


def test_test_records_of_strangers_stay_with_the_driver(tmp_path: Path) -> None:
    x, y = np.arange(4.0)[:, None], np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, who=[1, 1, 2, 2], x_test=x[:3], y_test=y[:3], who_test=[2, 3, 1])
    arguments = {"source": f"npz:{tmp_path}/a.npz", "clients": "who", "clients_test": "who_test"}
    f = load_federation(section(**arguments), 0)
    assert f.test is not None
    assert len(f.test) == 3
    with pytest.raises(DataError, match=r"1 test records, the first is record 2, are of clients without training records; .*at=driver"):
        load_federation(section(at="clients", **arguments), 0)
    with pytest.raises(DataError, match=r"data\.clients_test goes with data\.clients"):
        load_federation(section(f"npz:{tmp_path}/a.npz", clients_test="who_test", partition={"kind": "iid", "clients": 2}), 0)


@pytest.mark.parametrize(
    ("cells", "arguments", "message"),
    [
        (
            ["train", "test", "val", "train"],
            {},
            r"column 'part' \(data\.fold\) has the value 'val' besides train and test; .*data\.test_fold",
        ),
        (["train", "train", "train", "Train "], {}, r"no record is of the test set by column 'part'"),
        (["test"] * 4, {}, "no record is for training by column 'part'"),
        ([1, 1, 2, 2], {"test_fold": 3}, "no record is of the test set"),
        (["train", "", "test", "test"], {}, r"1 of 4 records say nothing in 'part' \(data\.fold\)"),
        (["train", "test", "test", "test"], {"fold": "parts"}, r"no column 'parts' \(data\.fold\)"),
        (["train", "test", "test", "test"], {"test": "x.csv"}, r"data\.test: contradicts data\.fold"),
        (["train", "test", "test", "test"], {"fold": None, "test_fold": 1}, r"data\.test_fold: is a value of the column data\.fold"),
    ],
)
def test_fold_columns_that_do_not_say_it(tmp_path: Path, cells: list[Any], arguments: dict[str, Any], message: str) -> None:
    pd.DataFrame({"u": [1.0, 2, 3, 4], "label": [0, 1, 0, 1], "part": cells}).to_csv(tmp_path / "a.csv", index=False)
    given = {"label": "label", "fold": "part", "partition": {"kind": "iid", "clients": 1}, **arguments}
    with pytest.raises(DataError, match=message):
        load_federation(section(f"csv:{tmp_path}/a.csv", **{k: v for k, v in given.items() if v is not None}), 0)


# ---------------------------------------------------------------- a place a client


def silo_files(folder: Path, **extra: dict[str, Any]) -> None:
    """A file a silo, with columns of some silos' own."""
    for name, four in ARRAYS.items():
        rows = pd.DataFrame({"u": np.concatenate([four[0][:, 0], four[2][:, 0]]), "y": np.concatenate([four[1], four[3]])})
        rows["part"] = ["train"] * 2 + ["test"]
        rows.assign(**extra.get(name, {})).to_csv(folder / f"{name}.csv", index=False)


def test_silos_with_a_fold_column(tmp_path: Path) -> None:
    silo_files(tmp_path)
    data = section(f"csv:{tmp_path}", label="y", classes=2, fold="part")
    f = load_federation(data, 0)
    assert (trained(f), held(f), f.columns) == (TRAIN, TEST, ("u",))
    alone = load_client(data, 0, "b")
    assert alone.test is not None
    assert (alone.train.x.tolist(), alone.test.x.tolist()) == ([[2], [4]], [[6]])
    pd.read_csv(tmp_path / "b.csv").assign(part="train").to_csv(tmp_path / "b.csv", index=False)
    assert held(load_federation(data, 0)) == {"a": [5]}  # nothing is held out at b besides
    assert len(load_client(data, 0, "b").train) == 3
    pd.read_csv(tmp_path / "a.csv").assign(part="train").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="no client has a record of the test fold"):
        load_federation(data, 0)


def test_silos_with_a_folder_of_test_files_or_one_for_all(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name, four in ARRAYS.items():
        pd.DataFrame({"u": four[0][:, 0], "y": four[1]}).to_csv(tmp_path / f"{name}.csv", index=False)
        pd.DataFrame({"y": four[3], "u": four[2][:, 0]}).to_csv(tmp_path / "tests" / f"{name}.CSV", index=False)
    f = load_federation(section(f"csv:{tmp_path}", label="y", classes=2, test=f"{tmp_path}/tests"), 0)
    assert (trained(f), held(f), f.test) == (TRAIN, TEST, None)
    pd.DataFrame({"u": [7.0], "y": [0]}).to_csv(tmp_path / "public.csv", index=False)  # beside the silos', and none of them
    data = section(f"csv:{tmp_path}", label="y", classes=2, test=f"{tmp_path}/public.csv", normalize={"kind": "constants", "std": 2.0})
    f = load_federation(data, 0)
    assert (f.names, held(f)) == (["a", "b"], {})
    assert f.test is not None
    assert f.test.x.tolist() == [[3.5]]
    found = silo_test(data)
    assert found is not None
    assert (found[0].x.tolist(), found[1].columns) == ([[3.5]], ("u",))
    assert silo_test(section(f"csv:{tmp_path}", label="y", classes=2)) is None
    pd.DataFrame({"w": [7.0], "y": [0]}).to_csv(tmp_path / "public.csv", index=False)
    with pytest.raises(DataError, match=r"clients 'a' and the test set have different features \(columns u, w stand in one only\)"):
        load_federation(data, 0)


def test_a_class_of_silos_with_tests(own: Any) -> None:
    class Silos:
        classes = 2

        def clients(self) -> list[str]:
            return ["a", "b"]

        def load(self, client: str) -> Any:
            return ARRAYS[client]

    class Public(Silos):
        def load(self, client: str) -> Any:
            return ARRAYS[client][:2]

        def test(self) -> Any:
            return np.array([[7.0]]), [0]

    own.silos, own.public = Silos, Public
    f = load_federation(section("python:my_folds:silos"), 0)
    assert (trained(f), held(f), f.test) == (TRAIN, TEST, None)
    f = load_federation(section("python:my_folds:public"), 0)
    assert (trained(f), held(f)) == (TRAIN, {})
    assert f.test is not None
    assert f.test.x.tolist() == [[7.0]]
    with pytest.raises(DataError, match="the driver's test set does not have"):
        load_federation(section("python:my_folds:public", normalize={"kind": "standardize_client"}), 0)


def test_columns_that_only_some_silos_have_can_be_dropped(tmp_path: Path) -> None:
    silo_files(tmp_path, a={"ward": [1, 2, 3]})
    given = {"label": "y", "classes": 2, "fold": "part"}
    with pytest.raises(DataError, match=r"columns ward stand in one only\); .*data\.drop what only some have"):
        load_federation(section(f"csv:{tmp_path}", **given), 0)
    data = section(f"csv:{tmp_path}", drop=["ward"], **given)
    assert load_federation(data, 0).columns == ("u",)
    assert (load_client(data, 0, "a").absent, load_client(data, 0, "b").absent) == ((), ("ward",))
    with pytest.raises(DataError, match=r"data\.drop: no client has a column 'wards'"):
        load_federation(section(f"csv:{tmp_path}", drop=["wards", "ward"], **given), 0)
    with pytest.raises(DataError, match=r"no column 'wards' \(data\.drop\)"):  # of one file, nobody else may have it
        load_federation(section(f"csv:{tmp_path}/a.csv", drop=["wards"], label="y", partition={"kind": "iid", "clients": 1}), 0)


def silo(name: str, **facts: Any) -> Silo:
    return Silo(
        **{
            "name": name,
            "records": 9,
            "held_out": 1,
            "own_test": False,
            "shape": (2,),
            "target_shape": (),
            "tokens": False,
            "scale": 1.0,
            "columns": (),
            "inputs": (),
            "absent": (),
            **facts,
        }
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"shape": (3,)}, r"clients 'a' and 'b' have different features \(\(2,\) float32 and \(3,\) float32\)"),
        ({"tokens": True}, r"\(2,\) float32 and \(2,\) int64"),
        ({"columns": ("u", "v")}, "columns u, v stand in one only"),
        ({"own_test": True}, "client 'b' has a test set of its own, client 'a' has none"),
    ],
)
def test_silos_must_agree_wherever_they_are_read(facts: dict[str, Any], message: str) -> None:
    check_silos([silo("'a'"), silo("'b'")], 0.2)
    with pytest.raises(DataError, match=message):
        check_silos([silo("'a'"), silo("'b'", **facts)], 0.2)


# ---------------------------------------------------------------- hold-outs


def test_a_hold_out_of_no_record_is_refused(tmp_path: Path) -> None:
    iid = {"partition": {"kind": "iid", "clients": 40}}
    with pytest.raises(DataError, match=r"data\.holdout\.fraction: 0\.001 of 150 records rounds to none, .*; raise it, or set it to 0"):
        load_federation(Data.model_validate({"source": "sklearn:iris", "holdout": {"fraction": 0.001}, **iid}), 0)
    with pytest.raises(DataError, match=r"0\.1 of the records of each of 40 clients rounds to none"):
        load_federation(Data.model_validate({"source": "sklearn:iris", "holdout": {"fraction": 0.1, "at": "clients"}, **iid}), 0)
    assert load_federation(Data.model_validate({"source": "sklearn:iris", "holdout": {"fraction": 0.0}, **iid}), 0).test is None
    pd.DataFrame({"u": [1.0, 2], "y": [0, 1], "who": ["a", "b"]}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"0\.5 of 2 records \(each client keeps one\) rounds to none"):
        load_federation(
            Data.model_validate({"source": f"csv:{tmp_path}/a.csv", "label": "y", "silo": "who", "holdout": {"fraction": 0.5}}), 0
        )
    with pytest.raises(DataError, match="0.2 of the records of each of 2 clients rounds to none"):
        check_silos([silo("'a'", held_out=0), silo("'b'", held_out=0)], 0.2)
    check_silos([silo("'a'", held_out=0), silo("'b'", held_out=0)], 0.0)
    check_silos([silo("'a'", held_out=0), silo("'b'", held_out=0)], 0.2, silo("the test set"))


def test_clients_of_records_are_known(own: Any) -> None:
    from fedray.data.source import build

    x, y = np.ones((3, 1)), [0, 1, 0]
    for who in (np.array(["a", None, "b"], dtype=object), np.array([1.0, np.nan, 2]), ["a", " ", "b"]):
        with pytest.raises(DataError, match="1 records say of no client that they are its, the first is record 2"):
            build("here", x, y, groups=who)
    with pytest.raises(DataError, match="the clients of 1 of 3 records are masked"):
        build("here", x, y, groups=np.ma.masked_array([1, 2, 3], [False, True, False]))


@pytest.mark.parametrize("public", [False, True])
def test_what_the_driver_learns_of_silos_is_what_it_would_have_read(tmp_path: Path, public: bool) -> None:
    from fedray.clients.messages import HostInfo
    from fedray.configfile import build_config
    from fedray.experiment.silo_facts import complete
    from fedray.planning.preparation import prepare

    silo_files(tmp_path, a={"ward": [1, 2, 3]})
    pd.DataFrame({"u": [7.0], "y": [0]}).to_csv(tmp_path / "public.csv", index=False)
    own_test = (
        {"test": f"{tmp_path}/public.csv", "drop": ["ward", "part"]} if public else {"fold": "part", "drop": ["ward"], "silos": ["a", "b"]}
    )
    config = {
        "name": "silos",
        "rounds": 1,
        "data": {"source": f"csv:{tmp_path}", "label": "y", "labels": [0, 1, 2], **own_test},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, "batch_size": 5, "epochs": 1},
        "evaluation": {"federated": not public},
    }
    together = prepare(build_config(config))
    alone = prepare(build_config({**config, "clients": {"placement": "dedicated"}}))
    assert (alone.federation, alone.sizes, alone.model) == (None, None, None)
    infos = []
    for name in alone.names:
        client = load_client(alone.config.data, 0, name)
        infos.append(HostInfo("here", 1, "cpu", 1, Silo.of(client), np.bincount(client.train.y, minlength=3).tolist()))
    unread, alone = alone, complete(alone, infos)
    assert alone.model is not None and together.model is not None and alone.sizes is not None and together.sizes is not None
    assert alone.model.document() == together.model.document()
    assert alone.model.weights.value.tobytes() == together.model.weights.value.tobytes()
    assert alone.sizes.tolist() == together.sizes.tolist() == ([3, 3] if public else [2, 2])
    assert alone.partition == {k: v for k, v in together.partition.items() if k != "digest"}
    assert list(alone.class_labels) == list(together.class_labels) == [0, 1, 2]
    for prepared in (alone, together):
        assert (prepared.test is not None) == public
    with pytest.raises(DataError, match="have different features"):
        complete(unread, [infos[0], HostInfo("here", 1, "cpu", 1, silo("'b'", columns=("w",)))])
