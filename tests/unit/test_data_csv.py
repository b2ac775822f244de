"""CSV files: what columns become, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedray.config import Data
from fedray.data.dataset import check, client_names, load_client, load_federation, per_silo
from fedray.data.records import Federation
from fedray.errors import DataError

HEART = {
    "label": "target",
    "label_threshold": 0,
    "drop": ["slope", "ca", "thal"],
    "missing_rows": "drop",
    "categories": {"cp": [1, 2, 3, 4], "restecg": [0, 1, 2]},
    "drop_first": True,
}


def section(source: str, **arguments: Any) -> Data:
    return Data.model_validate({"source": source, "holdout": {"fraction": 0.0}, **arguments})


def load(source: str, **arguments: Any) -> Federation:
    return load_federation(section(source, **arguments), 0)


def one(path: Path, text: str, **arguments: Any) -> Federation:
    """A single file dealt to one client."""
    (path / "f.csv").write_text(text)
    return load(f"csv:{path}/f.csv", **({"label": "y", "partition": {"kind": "iid", "clients": 1}} | arguments))


def test_real_heart_by_flambys_protocol(real_data: Path) -> None:
    f = load(f"csv:{real_data}/heart", **HEART)
    assert dict(zip(f.names, f.sizes.tolist(), strict=True)) == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
    assert (f.shape, f.classes) == ((13,), 2)
    assert f.columns == (
        *("age", "sex", "cp=2", "cp=3", "cp=4", "trestbps", "chol", "fbs", "restecg=1", "restecg=2", "thalach", "exang", "oldpeak"),
    )
    # The first patient of Cleveland: 63, male, cp 1, 145, 233, 1, restecg 2, 150, 0, 2.3; healthy.
    np.testing.assert_array_equal(f.client(0).train.x[0], np.float32([63, 1, 0, 0, 0, 145, 233, 1, 0, 1, 150, 0, 2.3]))
    assert f.client(0).train.y[0] == 0
    assert int(f.client(0).train.y.sum()) == 139  # sick patients in Cleveland


def test_a_silo_file_is_read_by_its_own_client_only(tmp_path: Path) -> None:
    for name, text in (("a", "u,y\n1,0\n2,1\n"), ("b", "u,y\n3,1\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00")
    data = section(f"csv:{tmp_path}", label="y", classes=2)
    check(data)
    assert per_silo(data)
    assert client_names(data, 0) == ["a", "b", "broken"]
    assert load_client(data, 0, "b").train.x.tolist() == [[3.0]]
    with pytest.raises(DataError, match=r"broken\.csv: is not UTF-8"):
        load_client(data, 0, "broken")
    with pytest.raises(DataError, match=r"no client 'brokn' among its 3. Did you mean 'broken'"):
        load_client(data, 0, "brokn")


def test_declared_silos_need_no_folder_at_the_driver(tmp_path: Path) -> None:
    data = section(f"csv:{tmp_path}/elsewhere", label="y", classes=2, silos=["north", "south"])
    assert client_names(data, 0) == ["north", "south"]
    with pytest.raises(DataError, match=r"elsewhere/south\.csv'"):
        load_client(data, 0, "south")


def test_silos_with_columns_in_another_order_need_features(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,v,y\n1,2,0\n")
    (tmp_path / "b.csv").write_text("v,u,y\n2,1,1\n")
    with pytest.raises(DataError, match=r"clients 'a' and 'b' have different features .*data\.features"):
        load(f"csv:{tmp_path}", label="y", classes=2)
    assert load(f"csv:{tmp_path}", label="y", classes=2, features=["u", "v"]).train.x.tolist() == [[1, 2], [1, 2]]
    assert load_client(section(f"csv:{tmp_path}", label="y", classes=2), 0, "b").columns == ("v", "u")
    (tmp_path / "b.csv").write_text("u,w,y\n2,1,1\n")
    with pytest.raises(DataError, match=r"columns v, w stand in one only"):
        load(f"csv:{tmp_path}", label="y", classes=2)


def test_one_file_with_a_silo_column(tmp_path: Path) -> None:
    f = one(tmp_path, "u,site,y\n1,20,no\n2,3,yes\n3,20,yes\n", silo="site", partition={"kind": "natural"})
    assert (f.names, f.sizes.tolist(), f.columns, f.classes) == (["3", "20"], [1, 2], ("u",), 2)
    assert f.train.y.tolist() == [1, 0, 1]
    f = one(tmp_path, "u,site,y\n1,north,0\n2,east,1\n", silo="site", partition={"kind": "natural"})
    assert f.names == ["east", "north"]


@pytest.mark.parametrize(
    ("arguments", "y", "classes"),
    [
        ({}, [1, 0, 2], 3),
        ({"label_threshold": 4}, [1, 0, 1], 2),
        ({"labels": [9, 5, 4]}, [1, 2, 0], 3),
        ({"classes": 10}, [5, 4, 9], 10),
        ({"regression": True}, [5.0, 4.0, 9.0], None),
    ],
)
def test_ways_to_read_a_label(tmp_path: Path, arguments: dict[str, Any], y: list[float], classes: int | None) -> None:
    f = one(tmp_path, "u,y\n1,5\n2,4.0\n3,9\n", **arguments)
    assert (f.train.y.tolist(), f.classes) == (y, classes)
    assert f.train.y.dtype == (np.float32 if classes is None else np.int64)


def test_text_labels_and_categories(tmp_path: Path) -> None:
    text = "colour,y\nred,b\nblue,a\nred,a\n"
    f = one(tmp_path, text, categories={"colour": ["blue", "red", "green"]})
    assert f.columns == ("colour=blue", "colour=red", "colour=green")
    assert f.train.x.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert f.train.y.tolist() == [1, 0, 0]
    assert one(tmp_path, text, categories={"colour": ["blue", "red"]}, drop_first=True, labels=["b", "a"]).train.y.tolist() == [0, 1, 1]


@pytest.mark.parametrize("cells", ["1,2", "1.0,2.0", "01,2"])
def test_categories_compare_numbers_by_value(tmp_path: Path, cells: str) -> None:
    first, second = cells.split(",")
    f = one(tmp_path, f"c,y\n{first},0\n{second},1\n", categories={"c": [1, 2]})
    assert f.train.x.tolist() == [[1, 0], [0, 1]]


def test_missing_cells(tmp_path: Path) -> None:
    text = "u,v,w,y\n1,,5,0\n2,?,6,1\n3,7,-9,1\n4,8,7,\n5,9,8,0\n"
    with pytest.raises(
        DataError, match=r"3 of 5 records have missing cells, the first is record 1 in column 'v'; set data.missing_rows=drop"
    ):
        one(tmp_path, text)
    assert one(tmp_path, text, missing_rows="drop").train.x[:, 0].tolist() == [3, 5]
    assert one(tmp_path, text, classes=2, missing_rows="drop", missing=["", "?", -9]).train.x[:, 0].tolist() == [5]
    assert one(tmp_path, text, missing_rows="drop", drop=["v"]).train.x[:, 0].tolist() == [1, 2, 3, 5]
    with pytest.raises(DataError, match="every record has a missing cell"):
        one(tmp_path, "u,y\n,1\n,0\n", missing_rows="drop")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, r"f\.csv: is empty; expected a header line"),
        ("u,y\n", {}, r"f\.csv: holds no records"),
        ("u,label\n1,0\n", {}, r"f\.csv: there is no column 'y' \(data.label\); it has u, label"),
        ("u,y\n1,0\n", {"label": "yy"}, r"no column 'yy' \(data.label\); it has u, y. Did you mean 'y'"),
        ("u,y\n1,0\n", {"drop": ["uu"]}, r"no column 'uu' \(data.drop\)"),
        ("u,y\n1,0\n", {"features": ["v"]}, r"no column 'v' \(data.features\)"),
        ("u,y\n1,0\n", {"silo": "site"}, r"no column 'site' \(data.silo\)"),
        ("u,y\n1,0\n", {"categories": {"v": [1]}}, r"no feature 'v' \(data.categories.v\)"),
        ("u,y\n1,0\n", {"drop": ["u"]}, "no feature columns are left"),
        ("u,y\n1,0\n2x,1\n", {}, r"column 'u' has the cell '2x' \(record 2\), which is not a number; .* data.drop"),
        ("u,y\n1,0\nnan,1\n", {}, r"column 'u' has the cell 'nan' \(record 2\), which is not a number"),
        ("u,y\n1,0\ninf,1\n", {}, "record 2|cell 'inf'"),
        (
            "u,y\n1,0\n3,1\n",
            {"categories": {"u": [1, 2]}},
            r"column 'u' has the value '3' in record 2, but data.categories.u lists only 1, 2",
        ),
        ("u,y\n1,0\n3,7\n", {"labels": [0, 1]}, r"column 'y' has the value '7' in record 2, but data.labels lists only 0, 1"),
        ("u,y\n1,0\n3,7\n", {"classes": 2}, "found the label '7', but data.classes=2"),
        ("u,y\n1,a\n3,b\n", {"classes": 2}, "found the label 'a', but data.classes=2"),
        ("u,y\n1,0.5\n3,1\n", {}, r"not whole numbers; set data.regression=true"),
        ("u,y\n1,a\n", {"regression": True}, r"column 'y' has the cell 'a'"),
        ("u,y\n1,a\n", {"label_threshold": 0}, r"column 'y' has the cell 'a'"),
        ("u,y\n1,0,9\n", {}, "is not a regular table"),
        ("u,y\n1,0\n1,0,9\n", {}, "is not a regular table .*line 3"),
        ("u,u,y\n1,2,0\n", {}, "column 'u' stands twice"),
        ("u;y\n1;0\n", {}, r"the header is the one column 'u;y'; set data\.delimiter=';'"),
        ("u,y\n1,0\n", {"delimiter": ";;"}, r"data\.delimiter"),
        ("u,y\n1,0\n", {"labels": [1, 2], "classes": 2}, r"data\.classes: contradicts data\.labels"),
        ("u,y\n1,0\n", {"labels": [1, 1]}, r"data\.labels: should list two or more different values"),
        ("u,y\n1,0\n", {"categories": {"u": [1, 1.0]}}, r"data\.categories\.u: should list different values"),
        ("u,y\n1,0\n", {"features": ["u", "y"]}, r"data\.features: 'y' is the label"),
        ("u,y\n1,0\n", {"features": []}, r"data\.features: should name each column once"),
        ("u,s,y\n1,a/b,0\n1,a/b,1\n", {"silo": "s", "partition": {"kind": "natural"}}, "'a/b' cannot be a client's name"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        one(tmp_path, text, **arguments)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert one(tmp_path, "\ufeffu,y\n1,0\n2,1\n").columns == ("u",)


def test_wrong_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.csv").write_text("u,y\n1,0\n")
    for where, arguments, message in [
        ("none", {}, "there is no file or folder"),
        ("empty", {"classes": 2}, r"holds no \.csv files"),
        ("full", {}, "needs its classes declared"),
        ("full", {"classes": 2, "silo": "u"}, r"data\.silo: names the client column of a single file"),
        ("full", {"classes": 2, "silos": ["a", "a"]}, "the client name 'a' stands twice"),
        ("full", {"classes": 2, "partition": {"kind": "iid", "clients": 2}}, "cannot be dealt anew by 'iid'; use natural"),
        ("full", {"clases": 2}, r"data\.clases: unknown argument of csv .* Did you mean 'classes'"),
        ("full", {"classes": "two"}, r"data\.classes: "),
    ]:
        with pytest.raises(Exception, match=message) as caught:
            check(section(f"csv:{tmp_path}/{where}", **({"label": "y"} | arguments)))
        assert getattr(caught.value, "exit_code", 0) == 2
    with pytest.raises(Exception, match=r"data\.label: csv needs it"):
        check(section(f"csv:{tmp_path}/full", classes=2))
