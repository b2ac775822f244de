"""Labels: which are missing, which class each becomes, and that the label of each class is kept."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedray.config import Data, Privacy
from fedray.data.dataset import declared_labels, load_client, load_federation
from fedray.data.records import Federation
from fedray.data.source import Raw, build
from fedray.errors import DataError, PrivacyRefusal
from fedray.privacy.rules import check_classes


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("my_labels")
    monkeypatch.setitem(sys.modules, "my_labels", module)
    return module


def raw(y: Any, **declared: Any) -> Raw:
    return build("here", np.ones((len(y), 2), dtype=np.float32), y, **declared)


def load(source: str = "python:my_labels:give", **arguments: Any) -> Federation:
    section = {"partition": {"kind": "iid", "clients": 2}, "holdout": {"fraction": 0.0}, "source": source, **arguments}
    return load_federation(Data.model_validate(section), 0)


# ---------------------------------------------------------------- missing labels


@pytest.mark.parametrize(
    "y",
    [
        np.array(["ill", None, float("nan"), "well"], dtype=object),
        np.array(["ill", "", "  ", "well"], dtype=object),
        ["ill", None, float("nan"), "well"],
        np.array(["ill", "nan", "None", "well"]),  # what NumPy makes of a list with missing labels
        pd.Series(["ill", pd.NA, None, "well"]),
        pd.Series(["ill", pd.NaT, None, "well"], dtype=object),
        pd.Series([1, None, None, 0], dtype="Int64"),
        pd.Categorical(["ill", None, None, "well"]),
        np.array([1.0, np.nan, np.nan, 0.0]),
        np.array([1, None, np.nan, 0], dtype=object),
    ],
)
@pytest.mark.parametrize("classes", [None, 2])
def test_missing_labels_are_refused_with_how_many_and_where(y: Any, classes: int | None) -> None:
    with pytest.raises(DataError, match=r"here: 2 of 4 labels are missing .* the first is that of record 2;"):
        raw(y, classes=classes)


@pytest.mark.parametrize(
    "y", [np.ma.masked_array([0, 1, 1, 0], [False, False, True, True]), np.ma.masked_equal([[0.5], [1.5], [9], [9]], 9)]
)
def test_masked_labels_are_refused(y: Any) -> None:
    with pytest.raises(DataError, match=r"here: the labels of 2 of 4 records are masked, the first in record 3;"):
        raw(y)


def test_masked_features_are_refused_and_a_mask_of_nothing_is_not() -> None:
    x = np.ma.masked_array(np.ones((3, 2)), [[False, False], [False, True], [True, True]])
    with pytest.raises(DataError, match=r"the features of 2 of 3 records are masked, the first in record 2;"):
        build("here", x, [0, 1, 0])
    assert build("here", np.ma.masked_array(np.ones((3, 2))), np.ma.masked_array([0, 1, 0])).y.tolist() == [0, 1, 0]


def test_a_label_that_looks_missing_can_be_declared() -> None:
    found = raw(np.array(["None", "mild", "None"]), labels=["None", "mild"])
    assert (found.y.tolist(), found.class_labels, found.declared) == ([0, 1, 0], ("None", "mild"), True)


# ---------------------------------------------------------------- which class


@pytest.mark.parametrize(
    ("y", "classes", "labels"),
    [
        ([10, 20, 30, 10], [0, 1, 2, 0], [10, 20, 30]),
        ([-1, 1, 1, -1], [0, 1, 1, 0], [-1, 1]),
        ([2, 0, 1, 0], [2, 0, 1, 0], [0, 1, 2]),
        (["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        (np.array([100, 9, 20], dtype=object), [2, 0, 1], [9, 20, 100]),  # numbers, not the text "100" < "20" < "9"
        (pd.Categorical([100, 9, 20]), [2, 0, 1], [9, 20, 100]),
        (np.array([7, 9], dtype=np.uint8), [0, 1], [7, 9]),
    ],
)
def test_found_labels_are_numbered_in_sorted_order_and_kept(y: Any, classes: list[int], labels: list[Any]) -> None:
    found = raw(y)
    assert (found.y.tolist(), list(found.class_labels), found.classes, found.declared) == (classes, labels, len(labels), False)
    assert all(type(label) in (int, str) for label in found.class_labels)


def test_declared_classes_stay_what_they_are() -> None:
    found = raw([3, 64, 9], classes=65)
    assert (found.y.tolist(), found.classes, list(found.class_labels), found.declared) == ([3, 64, 9], 65, list(range(65)), True)
    for y, odd in (([10, 20, 30], 20), ([-1, 0, 1], -1)):
        with pytest.raises(DataError, match=rf"found the label '{odd}', but data.classes=20 asks for integers 0 to 19; .*data.labels"):
            raw(y, classes=20)


def test_declared_labels_give_the_order() -> None:
    found = raw(["well", "ill"], labels=["well", "ill", "dead"])
    assert (found.y.tolist(), found.classes, found.class_labels, found.declared) == ([0, 1], 3, ("well", "ill", "dead"), True)
    assert raw([30.0, 10.0], labels=[30, 20, 10]).y.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"record 2 has the label 'x', but data.labels lists only a, b\."):
        raw(["a", "x"], labels=["a", "b"])


@pytest.mark.parametrize("y", [[True, False, True], np.array([True, True, True]), np.array([True, True, True], dtype=object)])
def test_booleans_are_two_classes_whichever_occur(y: Any) -> None:
    found = raw(y)
    assert (found.y.tolist(), found.classes, found.class_labels, found.declared) == ([int(v) for v in y], 2, (False, True), True)


@pytest.mark.parametrize("y", [[0.0, 1.0, 1.0], np.array([0.5, 2, 3], dtype=object), np.array([7.0, 7.0, 7.0])])
def test_floats_are_regression_and_stay(y: Any) -> None:
    found = raw(y)
    assert (found.classes, list(found.class_labels), found.y.dtype, found.y.tolist()) == (None, [], np.float32, [float(v) for v in y])


def test_one_class_is_refused_unless_more_are_declared() -> None:
    for y in ([5, 5, 5], ["a", "a", "a"], [0, 0, 0]):
        with pytest.raises(DataError, match=rf"every label is '{y[0]}', and one class alone cannot be learned"):
            raw(y)
    assert raw([0, 0, 0], classes=2).classes == 2


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([1, "a"], dtype=object), "labels are of type int, str; they should all be"),
        (np.array([1.5, np.inf]), "the label of record 2 is not a finite number"),
        (np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]"), "labels are of type datetime64"),
        (np.array([1 + 1j, 2]), "labels are of type complex128"),
        (np.array([2**70, 1], dtype=object), "beyond 64-bit integers"),
    ],
)
def test_labels_of_other_types_are_refused(y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        raw(y)


# ---------------------------------------------------------------- every source, and the way to the model


def test_every_source_takes_classes(own: Any, tmp_path: Any) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    x, y = np.random.default_rng(0).normal(size=(6, 2)), np.array([3, 1, 3, 1, 4, 1])
    frame = pd.DataFrame(x, columns=["u", "v"]).assign(label=y)
    frame.to_csv(tmp_path / "a.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    own.give, own.silos = lambda: (x, y), lambda: {"a": (x, y), "b": (x[:2], y[:2])}
    sources = [f"csv:{tmp_path}/a.csv", f"parquet:{tmp_path}/a.parquet", f"npz:{tmp_path}/a.npz", "python:my_labels:give"]
    for source in [*sources, "python:my_labels:silos", "sklearn:iris"]:
        more = {"label": "label"} if source.startswith("csv") else {}
        f = load(source, classes=7, **more)
        assert (f.classes, list(f.class_labels), f.declared) == (7, list(range(7)), True), source
        assert set(f.train.y.tolist()) == ({0, 1, 2} if "iris" in source else {1, 3, 4}), source
        f = load(source, labels=[4, 3, 2, 1, 0], **more)
        assert (f.classes, list(f.class_labels)) == (5, [4, 3, 2, 1, 0]), source
        assert set(f.train.y.tolist()) == ({2, 3, 4} if "iris" in source else {0, 1, 3}), source


def test_what_a_source_knows_of_its_classes(tmp_path: Any) -> None:
    f = load("sklearn:breast_cancer")
    assert (list(f.class_labels), f.declared) == (["malignant", "benign"], True)
    assert list(load("sklearn:digits").class_labels) == list(range(10))
    (tmp_path / "a.csv").write_text("u,y\n1,0\n2,7\n")
    section = {"source": f"csv:{tmp_path}", "label": "y", "label_threshold": 2.5, "holdout": {"fraction": 0.0}}
    assert declared_labels(Data.model_validate(section)) == ("y <= 2.5", "y > 2.5")
    assert list(load_federation(Data.model_validate(section), 0).class_labels) == ["y <= 2.5", "y > 2.5"]


def test_a_function_that_takes_classes_gets_them(own: Any) -> None:
    own.give = lambda classes: (np.ones((4, 2)), np.arange(4) % (classes - 1))
    f = load(classes=4)
    assert (f.classes, sorted(set(f.train.y.tolist()))) == (4, [0, 1, 2])


def test_a_class_of_silos_without_classes_takes_the_configs(own: Any) -> None:
    class Silos:
        def clients(self) -> list[str]:
            return ["a", "b"]

        def load(self, client: str) -> Any:
            return np.ones((4, 2)), ["x" if client == "a" else "y"] * 4

    own.give = Silos
    section = {"source": "python:my_labels:give", "holdout": {"fraction": 0.0}}
    with pytest.raises(DataError, match=r"classes.*data\.classes or data\.labels"):
        load(partition={"kind": "natural"})
    data = Data.model_validate({**section, "labels": ["x", "y"]})
    f = load_federation(data, 0)
    assert (f.classes, f.class_labels, f.train.y.tolist()) == (2, ("x", "y"), [0] * 4 + [1] * 4)
    assert load_client(data, 0, "b").train.y.tolist() == [1] * 4


def test_clients_of_a_dict_have_labels_of_one_type(own: Any) -> None:
    x = np.ones((2, 2))
    for a, b in (([0, 1], ["0", "1"]), ([0, 1], [0.5, 1.0])):
        own.give = lambda a=a, b=b: {"a": (x, a), "b": (x, b)}
        with pytest.raises(DataError, match=r"client b\): has labels of .* make them of one type"):
            load(partition={"kind": "natural"})
    own.give = lambda: {"a": (x, [5, 5]), "b": (x, [7, 7])}  # one class a client is no fault
    assert load(partition={"kind": "natural"}).train.y.tolist() == [0, 0, 1, 1]
    own.give = lambda: {"a": (x, np.array([1, None], dtype=object)), "b": (x, [7, 7])}
    with pytest.raises(DataError, match=r"client a\): 1 of 2 labels are missing"):
        load(partition={"kind": "natural"})
    own.give = lambda: {1: (x, [0, 1]), "1": (x, [0, 1])}
    with pytest.raises(DataError, match="the client name '1' stands twice"):
        load(partition={"kind": "natural"})


def test_another_label_of_a_class_is_another_data_set() -> None:
    first, second, third = (raw(y) for y in ([10, 20], [10, 30], [0, 1]))
    digests = [
        Federation(["a"], r, np.array([0, 2]), None, None, None, 2, (), labels).digest
        for r, labels in (
            (_records(first), first.class_labels),
            (_records(second), second.class_labels),
            (_records(third), third.class_labels),
        )
    ]
    assert len(set(digests)) == 3
    plain = Federation(["a"], _records(third), np.array([0, 2]), None, None, None, 2)
    assert digests[2] == Federation(["a"], _records(third), np.array([0, 2]), None, None, None, 2, (), (0, 1)).digest
    assert plain.train.y.tolist() == [0, 1]


def _records(found: Raw) -> Any:
    from fedray.data.records import Records

    return Records(found.x, found.y)  # type: ignore[arg-type]


# ---------------------------------------------------------------- under privacy


def _privacy(regime: str, *accepted: str) -> Privacy:
    return Privacy.model_validate({"regime": regime, "unprotected": list(accepted)})


@pytest.mark.parametrize("regime", ["record", "client", "local", "distributed"])
def test_classes_are_declared_under_privacy(regime: str) -> None:
    with pytest.raises(PrivacyRefusal, match=r"data\.classes=C .*data\.labels.*privacy\.unprotected=\[classes\]") as caught:
        check_classes(_privacy(regime), False, range(3))
    assert caught.value.code == f"privacy.incompatible.{regime}.undeclared_classes"
    with pytest.raises(PrivacyRefusal):
        check_classes(_privacy(regime), False, ("ill", "well"))
    check_classes(_privacy(regime), True, range(3))
    check_classes(_privacy(regime), False, range(2))  # two are the fewest that there can be
    check_classes(_privacy(regime), False, ())  # regression
    check_classes(_privacy(regime, "classes"), False, range(3))
    check_classes(_privacy(regime, "class_counts"), False, range(3))
    check_classes(_privacy("none"), False, range(3))


def _prepared(privacy: dict[str, Any] | None = None, **data: Any) -> Any:
    from fedray.configfile import build_config
    from fedray.planning.preparation import prepare

    private = {"sampling_rate": 0.5, "expected_batch": 5, "steps": 1} if privacy else {"batch_size": 5, "epochs": 1}
    config = {
        "name": "labels",
        "rounds": 1,
        "data": {"source": "python:my_labels:give", "partition": {"kind": "iid", "clients": 2}, **data},
        "model": {"kind": "softmax"},
        "training": {"lr": 0.1, **private},
        "privacy": privacy or {},
    }
    return prepare(build_config(config))


def test_numbering_is_said_at_the_start(own: Any) -> None:
    y = np.array([10, 20, 30] * 20)
    own.give = lambda: (np.ones((60, 2), dtype=np.float32), y)
    found = _prepared()
    assert list(found.class_labels) == [10, 20, 30]
    assert any("10 is class 0, 20 is class 1, 30 is class 2 (class_labels in partition.json)" in text for text in found.warnings)
    assert not _prepared(classes=40).warnings
    private = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-3}
    with pytest.raises(PrivacyRefusal, match=r"data\.classes=C"):
        _prepared(private)
    assert _prepared(private, classes=40).model.facts.outputs == 40
    assert list(_prepared({**private, "unprotected": ["classes"]}).class_labels) == [10, 20, 30]
