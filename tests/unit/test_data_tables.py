"""What of a table is a feature, and which files make a table: nothing is taken by accident or left out without a word."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedray.config import Data
from fedray.data.dataset import client_names, load_client, load_federation
from fedray.data.files import parquet_files
from fedray.data.images import decode_images
from fedray.data.records import Federation
from fedray.data.source import build
from fedray.data.table import Table, shape_tables
from fedray.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ONE = {"partition": {"kind": "iid", "clients": 1}, "holdout": {"fraction": 0.0}}
NATURAL = {"holdout": {"fraction": 0.0}}


def load(source: str, **arguments: Any) -> Federation:
    return load_federation(Data.model_validate({"source": source, **(arguments or ONE)}), 0)


def read(frame: pd.DataFrame, **arguments: Any) -> Any:
    return shape_tables(frame, None, Table("y", **arguments), "here")


# ---------------------------------------------------------------- columns


def test_a_column_without_a_name_is_no_feature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"u": [1.5, 2.5], "y": [0, 1]})
    frame.to_csv(tmp_path / "a.csv")  # with its row numbers
    frame.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match=r"a\.csv: column 1 has no name .*leave it out with data\.drop=\['Unnamed: 0'\]"):
        load(f"csv:{tmp_path}/a.csv", label="y", **ONE)
    for more in ({"drop": ["Unnamed: 0"]}, {"features": ["u"]}):
        f = load(f"csv:{tmp_path}/a.csv", label="y", **more, **ONE)
        assert (f.columns, f.train.x.tolist()) == (("u",), [[1.5], [2.5]])
    pd.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "c.csv", index=False)  # read and written once more
    with pytest.raises(DataError, match="has no name"):
        load(f"csv:{tmp_path}/c.csv", label="y", **ONE)
    (tmp_path / "d.csv").write_text("u,y,\n1.5,0,\n2.5,1,\n")  # a comma too many
    with pytest.raises(DataError, match="column 3 has no name"):
        load(f"csv:{tmp_path}/d.csv", label="y", **ONE)


def test_an_index_in_parquet_is_no_feature_and_may_name_the_silos(tmp_path: Path) -> None:
    frame = pd.DataFrame({"u": [1.5, 2.5, 3.5], "label": [0, 1, 1]}, index=pd.Index(["n", "s", "n"], name="site"))
    frame.to_parquet(tmp_path / "named.parquet")
    frame.reset_index(drop=True).iloc[[2, 0, 1]].to_parquet(tmp_path / "numbers.parquet")
    frame.reset_index(drop=True).to_parquet(tmp_path / "range.parquet")
    f = load(f"parquet:{tmp_path}/named.parquet", silo="site", **NATURAL)
    assert (f.names, f.columns) == (["n", "s"], ("u",))
    with pytest.raises(DataError, match="column 'site' is the index of the rows"):
        load(f"parquet:{tmp_path}/named.parquet")
    with pytest.raises(DataError, match="column '__index_level_0__' is the index of the rows"):
        load(f"parquet:{tmp_path}/numbers.parquet")
    bare = pq.read_table(tmp_path / "numbers.parquet").replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "bare.parquet")  # as the Hugging Face library writes it
    with pytest.raises(DataError, match="column 3 has no name"):
        load(f"parquet:{tmp_path}/bare.parquet")
    assert load(f"parquet:{tmp_path}/range.parquet").columns == ("u",)


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2024-01-01", "2024-01-02"]),
        pd.to_datetime(["2024-01-01", "2024-01-02"]).tz_localize("UTC"),
        pd.to_timedelta([1, 2], "D"),
        pd.period_range("2024-01", periods=2),
        pd.interval_range(0, 2),
        pd.Categorical(pd.to_datetime(["2024-01-01", "2024-01-02"])),
        np.array([1 + 2j, 3]),
    ],
)
def test_dates_times_and_complex_numbers_are_refused_by_name(values: Any) -> None:
    with pytest.raises(
        DataError, match=r"here: column 'when' holds (dates, times or intervals|complex numbers) .*leave it out with data\.drop"
    ):
        read(pd.DataFrame({"when": values, "u": [1, 2], "y": [0, 1]}))


@pytest.mark.parametrize(
    "values", [[datetime.date(2024, 1, 1)] * 2, [datetime.time(3)] * 2, [[1], [2]], [1, "a"], ["1", "inf"], [1.0, np.inf]]
)
def test_cells_that_are_no_numbers_are_refused_by_name(values: Any) -> None:
    with pytest.raises(DataError, match=r"here: column 'odd' has the cell '.*' \(record [12]\), which is not a number"):
        read(pd.DataFrame({"odd": values, "y": [0, 1]}))


@pytest.mark.parametrize(
    "values",
    [
        ["1.5", " 0 "],
        [Decimal("1.5"), Decimal(0)],
        pd.Categorical([1.5, 0]),
        pd.Categorical(["1.5", "0"]),
        pd.array([1.5, 0], dtype="Float64"),
    ],
)
def test_numbers_in_other_clothes_are_numbers(values: Any) -> None:
    assert read(pd.DataFrame({"u": values, "y": [0, 1]})).x.tolist() == [[1.5], [0.0]]


def test_booleans_are_zero_and_one() -> None:
    for values in ([True, False], pd.array([True, False], dtype="boolean"), np.array([True, False], dtype=object)):
        found = read(pd.DataFrame({"u": values, "y": values}))
        assert (found.x.tolist(), found.y.tolist(), found.class_labels) == ([[1.0], [0.0]], [1, 0], (False, True))


def test_label_columns_that_are_dates_or_missing_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels are of type datetime64"):
        read(pd.DataFrame({"u": [1, 2], "y": pd.to_datetime(["2024-01-01", "2024-01-02"])}))
    (tmp_path / "a.csv").write_text("u,y\n1,ill\n2,NA\n3,well\n4,nan\n")
    with pytest.raises(DataError, match=r"2 of 4 labels are missing .* record 2; .*data\.missing.*data\.labels"):
        load(f"csv:{tmp_path}/a.csv", label="y", **ONE)
    f = load(f"csv:{tmp_path}/a.csv", label="y", missing=["NA", "nan"], missing_rows="drop", **ONE)
    assert f.train.y.tolist() == [0, 1]
    assert load(f"csv:{tmp_path}/a.csv", label="y", labels=["NA", "nan", "ill", "well"], **ONE).train.y.tolist() == [2, 0, 3, 1]


def test_categories_of_numbers_stay_numbers_as_labels() -> None:
    found = read(pd.DataFrame({"u": [1, 2, 3], "y": pd.Categorical([100, 9, 20])}))
    assert (found.y.tolist(), found.class_labels) == ([2, 0, 1], (9, 20, 100))


def test_a_test_set_with_its_columns_in_another_order() -> None:
    train = pd.DataFrame({"u": [1, 2], "v": [3, 4], "y": [0, 1], "row": [0, 1]})
    found = shape_tables(train, pd.DataFrame({"y": [1, 0], "v": [30, 40], "more": [7, 7], "u": [10, 20]}), Table("y", drop=["row"]), "here")
    assert found.test is not None
    assert found.test[0].tolist() == [[10, 30], [20, 40]]
    with pytest.raises(DataError, match=r"\(test set\): there is no column 'v'"):
        shape_tables(train, pd.DataFrame({"y": [1, 0], "u": [1, 2]}), Table("y", drop=["row"]), "here")


def test_a_column_that_is_there_twice() -> None:
    with pytest.raises(DataError, match="the column 'u' is there more than once"):
        read(pd.DataFrame([[1, 2, 0], [3, 4, 1]], columns=["u", "u", "y"]))


# ---------------------------------------------------------------- files


def test_csv_files_in_any_case_are_silos(tmp_path: Path) -> None:
    (tmp_path / "A.CSV").write_text("u,y\n1,0\n")
    (tmp_path / "b.csv").write_text("u,y\n2,1\n")
    (tmp_path / "C.Csv").write_text("u,y\n3,1\n")
    (tmp_path / "notes.txt").write_text("no table")
    section = {"source": f"csv:{tmp_path}", "label": "y", "classes": 2, **NATURAL}
    data = Data.model_validate(section)
    assert client_names(data, 0) == ["A", "C", "b"]
    assert load_federation(data, 0).train.x.tolist() == [[1], [3], [2]]
    assert load_client(data, 0, "A").train.x.tolist() == [[1]]
    assert load_client(Data.model_validate({**section, "silos": ["b", "A"]}), 0, "A").train.x.tolist() == [[1]]
    (tmp_path / "b.CSV").write_text("u,y\n9,1\n")
    with pytest.raises(DataError, match="the client name 'b' stands twice"):
        client_names(data, 0)
    with pytest.raises(DataError, match=r"holds b\.CSV and b\.csv for the client 'b'"):
        load_client(Data.model_validate({**section, "silos": ["b", "A"]}), 0, "b")


@pytest.mark.parametrize("name", ["b.csv.gz", "b.tsv", "B.TSV", "b.CSV.zip", "b.xlsx"])
def test_tables_in_another_form_are_not_left_out_without_a_word(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("u,y\n1,0\n")
    (tmp_path / name).write_text("u\ty\n1\t0\n")
    with pytest.raises(DataError, match=f"'{name}' in the folder .* is no plain .csv file"):
        load(f"csv:{tmp_path}", label="y", classes=2, **NATURAL)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["latest.parquet", "contest.parquet"], ["contest.parquet", "latest.parquet"], []),
        (["strain.parquet", "attest.parquet", "x.PARQUET"], ["attest.parquet", "strain.parquet", "x.PARQUET"], []),
        (["latest-train.parquet", "latest_test.Parquet"], ["latest-train.parquet"], ["latest_test.Parquet"]),
        (["cifarTrain.parquet", "cifarTest.parquet"], ["cifarTrain.parquet"], ["cifarTest.parquet"]),
        (["train/0.parquet", "train/1.parquet", "test/0.parquet"], ["train/0.parquet", "train/1.parquet"], ["test/0.parquet"]),
        (["split=train/0.parquet", "split=test/0.parquet"], ["split=train/0.parquet"], ["split=test/0.parquet"]),
        (
            ["train-00000-of-00001.parquet", "validation-0.parquet", "test2024.parquet"],
            ["train-00000-of-00001.parquet"],
            ["test2024.parquet"],
        ),
        (["a.parquet", "b.pq", "test.parq", "_metadata.parquet", ".a.parquet"], ["a.parquet", "b.pq"], ["test.parq"]),
        (["a.snappy.parquet", "b.parquet.gzip"], ["a.snappy.parquet", "b.parquet.gzip"], []),
    ],
)
def test_which_files_are_the_test_set(tmp_path: Path, names: list[str], train: list[str], test: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = parquet_files(tmp_path)
    assert [[str(file.relative_to(tmp_path)) for file in files] for files in found] == [train, test]


def test_files_that_say_nothing_or_too_much_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("train.parquet", "extra.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"'extra\.parquet' says neither train nor test"):
        parquet_files(tmp_path)
    (tmp_path / "extra.parquet").rename(tmp_path / "train-or-test.parquet")
    with pytest.raises(DataError, match=r"'train-or-test\.parquet' may be of the training or of the test set"):
        parquet_files(tmp_path)


def test_the_named_test_file_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("a.parquet", "held.parquet"):
        (tmp_path / name).touch()
    assert parquet_files(tmp_path, tmp_path / "held.parquet") == ([tmp_path / "a.parquet"], [tmp_path / "held.parquet"])


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_parts_are_joined_by_name_and_numbers_widened(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", u=pa.array([1, 2], pa.int32()), v=pa.array([None, None]), label=["b", "a"])
    write(tmp_path / "b.parquet", label=pa.array(["a"]).dictionary_encode(), v=[4.5], u=[3.5])
    f = load(f"parquet:{tmp_path}", missing_rows="drop", labels=["a", "b"], **ONE)
    assert (f.train.x.tolist(), f.train.y.tolist(), f.columns) == ([[3.5, 4.5]], [0], ("u", "v"))
    f = load(f"parquet:{tmp_path}", drop=["v"], **ONE)
    assert (f.train.x.tolist(), f.train.y.tolist(), f.columns) == ([[1.0], [2.0], [3.5]], [1, 0, 0], ("u",))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"u": ["1"], "label": [0]}, r"column 'u' holds int64 in '.*a\.parquet', but large_string in '.*b\.parquet'"),
        ({"u": [True], "label": [0]}, r"column 'u' holds int64 in '.*a\.parquet', but bool in"),
        ({"u": [1], "w": [1], "label": [0]}, r"'.*a\.parquet' and '.*b\.parquet' have different columns \(column 'w' is in one only\)"),
        ({"u": [1]}, r"column 'label' is in one only"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", u=[1, 2], label=[0, 1])
    write(tmp_path / "b.parquet", **other)
    with pytest.raises(DataError, match=message):
        load(f"parquet:{tmp_path}")


def test_hive_folders_give_columns(tmp_path: Path) -> None:
    write(tmp_path / "site=north/year=2024/0.parquet", u=[1.0, 2.0], label=[0, 1])
    write(tmp_path / "site=north/year=2025/0.parquet", u=[3.0], label=[1])
    write(tmp_path / "site=a%20b/year=2024/0.parquet", u=[4.0], label=[0])
    f = load(f"parquet:{tmp_path}", silo="site", **NATURAL)
    assert (f.names, f.columns) == (["a b", "north"], ("u", "year"))
    assert f.train.x.tolist() == [[4, 2024], [1, 2024], [2, 2024], [3, 2025]]
    with pytest.raises(DataError, match="column 'site' has the cell 'a b'"):
        load(f"parquet:{tmp_path}")
    write(tmp_path / "0.parquet", u=[4.0], label=[0])
    with pytest.raises(DataError, match=r"the column 'site', which folders give as site=VALUE, is not given by all"):
        load(f"parquet:{tmp_path}", silo="site", **NATURAL)


def test_hive_folders_of_folds_give_no_column(tmp_path: Path) -> None:
    write(tmp_path / "split=train/0.parquet", u=[1.0, 2.0], label=[0, 1])
    write(tmp_path / "split=test/0.parquet", u=[3.0], label=[1])
    f = load(f"parquet:{tmp_path}")
    assert (f.columns, f.train.x.tolist()) == (("u",), [[1], [2]])
    assert f.test is not None
    assert f.test.x.tolist() == [[3]]


def test_classes_that_a_parquet_file_names(tmp_path: Path) -> None:
    kept = {"info": {"features": {"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}}}
    table = pa.table({"u": [1.0, 2.0], "label": [2, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(kept)}), tmp_path / "a.parquet")
    f = load(f"parquet:{tmp_path}/a.parquet")
    assert (f.classes, list(f.class_labels), f.declared, f.train.y.tolist()) == (3, ["cat", "dog", "emu"], True, [2, 0])
    assert list(load(f"parquet:{tmp_path}/a.parquet", classes=5, **ONE).class_labels) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- integers and images


def test_integers_get_the_sentence_that_fits() -> None:
    from fedray.choices import ModelChoice
    from fedray.models.build import build_model

    torch = pytest.importorskip("torch")
    with pytest.raises(DataError, match=r"records of shape \(4, 5\) and type uint16 are taken for 16-bit images; .*65535"):
        build("here", np.ones((3, 4, 5), dtype=np.uint16), [0, 1, 0])
    with pytest.raises(ConfigError, match="give measurements as floats, for integers are taken for tokens"):
        build_model(ModelChoice(kind="softmax"), (6,), 2, 0, torch.int64)


def test_images_of_more_than_8_bits_or_of_two_kinds_are_refused() -> None:
    import io

    from PIL import Image

    def png(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    grey, colour = np.full((4, 5), 200, dtype=np.uint8), np.full((4, 5, 3), 200, dtype=np.uint8)
    with pytest.raises(DataError, match="image 2 has more than 8 bits a channel"):
        decode_images([png(grey), png(grey.astype(np.uint16) * 256)], "here")
    with pytest.raises(DataError, match="image 2 has colours .*, the first is grey"):
        decode_images([png(grey), png(colour)], "here")
    assert decode_images([png(colour), png(grey)], "here").shape == (2, 3, 4, 5)


# ---------------------------------------------------------------- frames of a user's own


def test_frames_of_features_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("my_frames")
    monkeypatch.setitem(sys.modules, "my_frames", module)
    frame, y = pd.DataFrame({"u": [1, 2], "v": [3, 4]}), [0, 1]  # whole numbers in a table are no tokens
    module.give = lambda: (frame, y, frame[["v", "u"]] * 10, y)  # type: ignore[attr-defined]
    f = load("python:my_frames:give")
    assert (f.columns, f.train.x.tolist(), f.train.x.dtype) == (("u", "v"), [[1, 3], [2, 4]], np.float32)
    assert f.test is not None
    assert f.test.x.tolist() == [[10, 30], [20, 40]]
    module.give = lambda: {"a": (frame, y), "b": (frame[["v", "u"]], y), "test": (frame[["v", "u"]], y)}  # type: ignore[attr-defined]
    f = load("python:my_frames:give", **NATURAL)
    assert (f.columns, f.client(1).train.x.tolist()) == (("u", "v"), [[1, 3], [2, 4]])
    assert f.test is not None
    assert f.test.x.tolist() == [[1, 3], [2, 4]]
    for odd, message in (
        (frame.rename(columns={"v": "w"}), r"client b\): column 'v' is in one table of features only"),
        (frame.assign(v=pd.to_datetime(["2024", "2025"])), r"client b\): column 'v' holds dates"),
        (frame.assign(v=[1.0, None]), r"client b\): 1 of 2 records have missing cells"),
        (frame.rename(columns={"v": "Unnamed: 0"}), r"client b\): column 2 has no name"),
    ):
        module.give = lambda odd=odd: {"a": (frame, y), "b": (odd, y)}  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=message):
            load("python:my_frames:give", **NATURAL)


@pytest.mark.parametrize(
    ("names", "test"), [("train.csv Test.CSV", "Test.CSV"), ("u_train.csv u_test.csv", "u_test.csv"), ("u.csv test.csv", "test.csv")]
)
def test_a_test_set_is_no_silo(tmp_path: Path, names: str, test: str) -> None:
    for name in names.split():
        (tmp_path / name).write_text("u,y\n1,0\n")
    with pytest.raises(DataError, match=rf"but '{test}' looks like a test set; name it in data\.test"):
        load(f"csv:{tmp_path}", label="y", classes=2, **NATURAL)
    listed = [name.partition(".")[0] for name in names.split()]
    assert load(f"csv:{tmp_path}", label="y", classes=2, silos=listed, **NATURAL).names == listed
    (tmp_path / test).rename(tmp_path / "contest.csv")
    assert len(client_names(Data.model_validate({"source": f"csv:{tmp_path}", "label": "y", "classes": 2}), 0)) == 2


def test_labels_that_differ_in_spaces_only() -> None:
    with pytest.raises(DataError, match="the labels ' ill' and 'ill' differ in spaces only"):
        build("here", np.ones((3, 1)), [" ill", "ill", "well"])
    assert build("here", np.ones((2, 1)), [" ill", "ill"], labels=["ill", " ill"]).y.tolist() == [1, 0]
