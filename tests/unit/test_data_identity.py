"""Values that are alike are not made one, and values that are none are not made some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedray.config import Data
from fedray.data import rows
from fedray.data.dataset import load_federation
from fedray.data.files import parquet_files
from fedray.data.records import Federation
from fedray.data.source import build, group_codes
from fedray.data.table import Table, shape_tables
from fedray.errors import DataError

BIG = 2**53


def load(path: Path, **arguments: Any) -> Federation:
    data = {"source": f"{path.suffix[1:] or 'parquet'}:{path}", "label": "y", "holdout": {"fraction": 0.0}, **arguments}
    return load_federation(Data.model_validate(data), 0)


@pytest.mark.parametrize("odd", [np.inf, -np.inf, 1e20])
def test_a_column_of_labels_with_what_no_class_number_can_be(odd: float) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": [0.0, odd, 1.0]})
    with pytest.raises(DataError, match=r"the label 'y' has the value .*(inf|1e\+20), which no class number can be"):
        shape_tables(frame, None, Table("y"), "here")


def test_targets_beyond_float32_are_refused() -> None:
    with pytest.raises(DataError, match="the label of record 2 is not a finite number"):
        build("here", np.zeros((2, 1), dtype=np.float32), np.array([0.5, 1e300]))


def test_text_and_numbers_in_one_list_of_labels() -> None:
    with pytest.raises(DataError, match="labels are of type int, str"):
        build("here", np.zeros((4, 1), dtype=np.float32), ["a", 1, "a", 1])


def test_long_whole_numbers_are_compared_to_the_last_digit() -> None:
    assert len({rows.key(v) for v in (BIG, BIG + 1, str(BIG + 1), np.int64(BIG))}) == 2
    assert rows.key("1") == rows.key(1.0) == rows.key(True) == 1
    assert [rows.key(v) for v in ("nan", float("inf"), "1e400", 10**400)] == ["nan", "inf", "1e400", str(10**400)]
    made = build("here", np.zeros((2, 1), dtype=np.float32), np.array([BIG, BIG + 1]), labels=[BIG + 1, BIG])
    assert made.y.tolist() == [1, 0]


def test_categories_that_float32_cannot_tell_apart() -> None:
    assert rows.codes([20240101, 20240102]) == [0.0, 1.0]
    assert rows.codes([3, 0.5]) == [3.0, 0.5]
    encoder = rows.RowEncoder([{"name": "day", "values": [20240101, 20240102]}, {"name": "a"}])
    assert encoder(pd.DataFrame({"a": [7, 8], "day": [20240102, 20240101]})).tolist() == [[1.0, 7.0], [0.0, 8.0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "should be a pandas frame with named columns, but are a NoneType"),
        ([[1.0]], "should be a pandas frame with named columns, but are a list"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "have the column 'a' more than once"),
    ],
)
def test_rows_that_are_no_table(given: Any, message: str) -> None:
    encoder = rows.RowEncoder([{"name": "a"}])
    with pytest.raises(ValueError, match=message):
        encoder(given)
    assert encoder({"b": [3], "a": [2]}).tolist() == encoder(pd.Series({"a": 2, "b": 3})).tolist() == [[2.0]]


@pytest.mark.parametrize("cells", [pd.Series([1e300]), pd.Series(pd.to_datetime(["2024-01-01"]))])
def test_rows_with_what_training_would_refuse(cells: Any) -> None:
    with pytest.raises(ValueError, match="column 'a' (has|holds)"):
        rows.RowEncoder([{"name": "a"}])(pd.DataFrame({"a": cells}))


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["10", "2", ""], ["2", "10"]),
        (["1.0", "2.0", ""], ["1", "2"]),
        (["007", "010", ""], ["007", "010"]),
        ([str(BIG), str(BIG + 1), ""], None),
    ],
)
def test_clients_of_a_csv_column(tmp_path: Path, cells: list[str], names: list[str] | None) -> None:
    (tmp_path / "a.csv").write_text("a,s,y\n" + "".join(f"{n},{cell},{n % 2}\n" for n, cell in enumerate(cells)))
    assert load(tmp_path / "a.csv", silo="s", missing_rows="drop").names == (names or cells[:2])


@pytest.mark.parametrize(("one", "other"), [("01", "1"), ("2", "2.0")])
def test_two_spellings_of_one_number_are_no_two_clients(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "a.csv").write_text(f"a,s,y\n1,{one},0\n2,{other},1\n")
    with pytest.raises(DataError, match=f"'{one}' and '{other}' in column 's' are one client or two"):
        load(tmp_path / "a.csv", silo="s")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["u", "nan"], "1 records say of no client"),
        (["u", "u "], "differ in spaces only"),
        ([1.0, 2.0**53], "more than 15 digits"),
    ],
)
def test_clients_that_are_none_or_may_be_one(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        group_codes(np.array(values), "here")


def test_clients_of_other_kinds_have_names() -> None:
    assert group_codes(np.array([b"u", b"v"], dtype=object), "here")[1] == ("u", "v")
    lists = np.empty(2, dtype=object)
    lists[:] = [[1], [2]]
    assert group_codes(lists, "here")[1] == ("[1]", "[2]")


@pytest.mark.parametrize(("train", "test"), [("f4", "u1"), ("u1", "f4"), ("f4", "i8")])
def test_a_test_set_that_would_be_read_in_another_way(train: str, test: str) -> None:
    y = np.array([0, 1])
    with pytest.raises(DataError, match="which are read in different ways"):
        build("here", np.zeros((2, 3), dtype=train), y, test=(np.zeros((2, 3), dtype=test), y))


def test_parts_may_lack_columns_that_are_dropped(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "parts").mkdir()
    for name, more in (("a", {}), ("b", {"note": ["x", "y"]}), ("c", {"note": [1, 2]})):
        pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1], **more}).to_parquet(tmp_path / "parts" / f"{name}.parquet")
    whole = load(tmp_path / "parts", drop=["note"], partition={"kind": "iid", "clients": 1})
    assert (whole.columns, len(whole.train.y)) == (("a",), 6)
    with pytest.raises(DataError, match="there is no column 'not'"):
        load(tmp_path / "parts", drop=["note", "not"], partition={"kind": "iid", "clients": 1})


def test_sets_written_in_one_word(tmp_path: Path) -> None:
    for name in ("trainset.parquet", "testset.parquet"):
        (tmp_path / name).touch()
    train, test = parquet_files(tmp_path)
    assert [f.name for f in train + test] == ["trainset.parquet", "testset.parquet"]
