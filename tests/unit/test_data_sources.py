"""Sources that are read as a whole: scikit-learn, archives, Parquet, Hugging Face, torchvision, the user's own."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedray.config import Data
from fedray.data.dataset import check, load_federation
from fedray.data.images import channels_first, decode_images
from fedray.data.records import Federation, Records
from fedray.data.source import Raw, Whole, build, gather
from fedray.data.source_python import python
from fedray.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ONE = {"kind": "iid", "clients": 1}


def load(source: str, partition: dict[str, Any] = ONE, holdout: float = 0.0, **arguments: Any) -> Federation:
    return load_federation(
        Data.model_validate({"source": source, "partition": partition, "holdout": {"fraction": holdout}, **arguments}), 0
    )


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


def image_table(pixels: np.ndarray, **columns: Any) -> Any:
    encoded = [{"bytes": png(p), "path": None} for p in pixels]
    return pa.table({"img": encoded, "label": [i % 3 for i in range(len(pixels))], **columns})


# ---------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize(
    ("name", "n", "shape", "classes"),
    [("digits", 1797, (64,), 10), ("breast_cancer", 569, (30,), 2), ("wine", 178, (13,), 3), ("iris", 150, (4,), 3)],
)
def test_sklearn_sets(name: str, n: int, shape: tuple[int, ...], classes: int) -> None:
    f = load(f"sklearn:{name}")
    assert (len(f.train), f.shape, f.classes, len(f.columns)) == (n, shape, classes, shape[0])
    assert f.train.x.dtype == np.float32
    assert f.train.y.dtype == np.int64


def test_sklearn_digits_as_images() -> None:
    flat, image = load("sklearn:digits"), load("sklearn:digits", image=True)
    assert image.shape == (1, 8, 8)
    np.testing.assert_array_equal(flat.train.x.reshape(-1, 1, 8, 8), image.train.x)
    assert image.train.x.max() == 1.0


# ---------------------------------------------------------------- archives


def test_npz_in_mnist_layout(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 4, x_test=x[:6], y_test=np.arange(6) % 4)
    f = load(f"npz:{tmp_path}/a.npz", holdout=0.5)
    assert (f.shape, f.classes, len(f.train)) == ((1, 4, 5), 4, 20)  # the archive's own test set is used, not the hold-out
    assert f.test is not None
    np.testing.assert_array_equal(f.test.x, x[:6, None] / np.float32(255))


def test_npz_natural_clients_and_renamed_keys(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(6, 2)
    np.savez(tmp_path / "a.npz", features=x, targets=np.array([5, 7, 5, 7, 7, 5]), who=np.array([30, 4, 30, 4, 4, 4]))
    f = load(f"npz:{tmp_path}/a.npz", {"kind": "natural"}, x="features", y="targets", clients="who")
    assert f.names == ["4", "30"]
    np.testing.assert_array_equal(f.client(1).train.x, x[[0, 2]].astype(np.float32))
    np.testing.assert_array_equal(f.train.y, [1, 1, 1, 0, 0, 0])  # 5 and 7 become 0 and 1
    assert f.test is None


def test_npz_float_labels_are_regression_and_integers_are_tokens(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.arange(8).reshape(4, 2), y_train=np.array([0.5, 1.5, 2.5, 3.5]))
    f = load(f"npz:{tmp_path}/a.npz")
    assert f.classes is None
    assert f.train.y.dtype == np.float32
    assert f.train.x.dtype == np.int64
    with pytest.raises(DataError, match=r"normalize.*tokens"):
        load(f"npz:{tmp_path}/a.npz", normalize={"kind": "unit_norm"})


def test_npz_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((3, 2)), y_tran=np.zeros(3), x_test=np.zeros((3, 2)))
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "c.npz").write_text("no archive")
    np.savez(tmp_path / "d.npz", x_train=np.zeros((3, 2)), y_train=np.zeros(3, dtype=int), x_test=np.zeros((3, 2)))
    for source, message in [
        (f"npz:{tmp_path}/none.npz", "there is no file or folder"),
        (f"npz:{tmp_path}/a.npz", r"no array 'y_train' \(data.y\); it has x_train, y_tran, x_test. Did you mean 'y_tran'"),
        (f"npz:{tmp_path}/b.npy", "holds one array"),
        (f"npz:{tmp_path}/c.npz", "cannot be read as a NumPy archive"),
        (f"npz:{tmp_path}/d.npz", "only one of 'x_test' and 'y_test'"),
    ]:
        with pytest.raises(DataError, match=message):
            load(source)


def test_real_mnist(real_data: Path) -> None:
    f = load(f"npz:{real_data}/mnist.npz", {"kind": "shards", "clients": 100})
    assert (f.shape, f.classes, len(f.train)) == ((1, 28, 28), 10, 60_000)
    assert f.test is not None
    assert np.bincount(f.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(f.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert f.sizes.tolist() == [600] * 100
    assert max(len(np.unique(f.client(k).train.y)) for k in range(100)) <= 4
    # Pixel mean and deviation of the training set are known figures: 0.1307, 0.3081.
    assert f.train.x.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert f.train.x.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("shape", "dtype", "channels", "expected"),
    [
        ((5, 8, 9), np.uint8, "auto", (5, 1, 8, 9)),
        ((5, 8, 9), np.float32, "auto", (5, 8, 9)),
        ((5, 8, 9, 3), np.uint8, "auto", (5, 3, 8, 9)),
        ((5, 3, 8, 9), np.float32, "auto", (5, 3, 8, 9)),
        ((5, 8, 9), np.float32, "none", (5, 1, 8, 9)),
        ((5, 3, 8, 3), np.uint8, "last", (5, 3, 3, 8)),
        ((5, 3, 8, 3), np.uint8, "first", (5, 3, 8, 3)),
    ],
)
def test_channels(shape: tuple[int, ...], dtype: Any, channels: Any, expected: tuple[int, ...]) -> None:
    assert channels_first(np.zeros(shape, dtype=dtype), channels, "here").shape == expected


@pytest.mark.parametrize(("shape", "channels"), [((5, 3, 8, 3), "auto"), ((5, 8, 9, 7), "auto"), ((5, 8), "none"), ((5, 8, 9), "last")])
def test_channels_that_cannot_be_told(shape: tuple[int, ...], channels: Any) -> None:
    with pytest.raises(DataError, match=r"data\.channels"):
        channels_first(np.zeros(shape, dtype=np.uint8), channels, "here")


def test_decoding_modes(pixels: np.ndarray) -> None:
    decoded = decode_images([png(p) for p in pixels], "here")
    np.testing.assert_array_equal(decoded, pixels.transpose(0, 3, 1, 2))
    grey = decode_images([png(p[:, :, 0]) for p in pixels], "here")
    np.testing.assert_array_equal(grey, pixels[:, None, :, :, 0])
    alpha = np.dstack([pixels[0], np.full((6, 5), 255, np.uint8)])
    np.testing.assert_array_equal(decode_images([png(alpha), png(pixels[1])], "here")[0], pixels[0].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("second", "message"),
    [(b"no image", "image 2 cannot be decoded"), (None, "record 2 has no image"), ("small", "image 2 is 4x4, the first 5x6")],
)
def test_decoding_errors(pixels: np.ndarray, second: Any, message: str) -> None:
    content = png(pixels[1, :4, :4]) if second == "small" else second
    with pytest.raises(DataError, match=message):
        decode_images([png(pixels[0]), content], "here")


def test_decoding_a_cut_off_image(pixels: np.ndarray) -> None:
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="image 1 cannot be decoded"):
        decode_images([png(big)[:3000]], "here")


# ---------------------------------------------------------------- Parquet


def test_parquet_folder_of_images(tmp_path: Path, pixels: np.ndarray) -> None:
    pq.write_table(image_table(pixels[:4]), tmp_path / "cifar-train-00000.parquet")
    pq.write_table(image_table(pixels[4:8]), tmp_path / "cifar-train-00001.parquet")
    pq.write_table(image_table(pixels[8:]), tmp_path / "cifar-test.parquet")
    f = load(f"parquet:{tmp_path}")
    assert (f.shape, f.classes, len(f.train)) == ((3, 6, 5), 3, 8)
    np.testing.assert_array_equal(f.train.x, pixels[:8].transpose(0, 3, 1, 2) / np.float32(255))
    assert f.test is not None
    np.testing.assert_array_equal(f.test.x, pixels[8:].transpose(0, 3, 1, 2) / np.float32(255))


def test_parquet_plain_bytes_silo_and_test_file(tmp_path: Path, pixels: np.ndarray) -> None:
    encoded = [png(p) for p in pixels]
    table = pa.table({"picture": encoded, "kind": ["cat", "dog"] * 6, "site": ["b", "a", "a"] * 4})
    pq.write_table(table, tmp_path / "all.parquet")
    pq.write_table(table.slice(0, 3), tmp_path / "held.parquet")
    f = load(f"parquet:{tmp_path}/all.parquet", {"kind": "natural"}, label="kind", silo="site", test=f"{tmp_path}/held.parquet")
    assert (f.names, f.sizes.tolist(), f.classes) == (["a", "b"], [8, 4], 2)
    assert f.test is not None
    assert f.test.y.tolist() == [0, 1, 0]


def test_parquet_rows_of_some_values_only(tmp_path: Path, pixels: np.ndarray) -> None:
    table = pa.table({"picture": [png(p) for p in pixels], "kind": [0, 1, 2, 9] * 3, "writer": ["b", "a", "c"] * 4})
    pq.write_table(table, tmp_path / "all.parquet")
    section = {"label": "kind", "silo": "writer", "classes": 3, "test": f"{tmp_path}/all.parquet"}
    f = load(f"parquet:{tmp_path}/all.parquet", {"kind": "natural"}, only={"kind": [0, 1, 2], "writer": ["a", "b"]}, **section)
    assert (f.names, f.train.y.tolist(), f.classes) == (["a", "b"], [1, 0, 2, 0, 2, 1], 3)
    assert f.test is not None and f.test.y.tolist() == [0, 1, 0, 2, 1, 2]
    for only, message in [
        ({"kinds": [1]}, r"no column 'kinds' \(data.only\)"),
        ({"kind": ["one"]}, r"data.only.kind names \['one'\], but the column holds int64"),
        ({"kind": [7]}, r"no record has one of the values of data.only.kind, \[7\]"),
    ]:
        with pytest.raises(DataError, match=message):
            load(f"parquet:{tmp_path}/all.parquet", {"kind": "natural"}, only=only, **section)


def test_parquet_tables(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "c": ["x", "y", "x", "x"], "target": [0, 1, 1, 0], "site": [1, 1, 2, 2]})
    pq.write_table(table, tmp_path / "t.parquet")
    f = load(f"parquet:{tmp_path}/t.parquet", {"kind": "natural"}, silo="site", categories={"c": ["x", "y"]})
    assert (f.names, f.columns) == (["1", "2"], ("a", "c=x", "c=y"))
    np.testing.assert_array_equal(f.train.x, [[1, 1, 0], [2, 0, 1], [3, 1, 0], [4, 1, 0]])


def test_parquet_errors(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "only").mkdir()
    pq.write_table(image_table(pixels), tmp_path / "only" / "x-test.parquet")
    pq.write_table(image_table(pixels), tmp_path / "i.parquet")
    pq.write_table(image_table(pixels).rename_columns(["img", "y"]), tmp_path / "j.parquet")
    for source, arguments, message in [
        ("none", {}, "there is no file or folder"),
        ("empty", {}, "holds no .parquet files"),
        ("only", {}, "none for training"),
        ("bad.parquet", {}, "cannot be read as Parquet"),
        ("i.parquet", {"image": "imgs"}, r"no column 'imgs' \(data.image\); it has img, label. Did you mean 'img'"),
        ("i.parquet", {"image": "label"}, "not encoded images"),
        ("i.parquet", {"label_threshold": 0}, r"data\.label_threshold: is for tables"),
        ("i.parquet", {"silo": "site"}, r"no column 'site' \(data.silo\)"),
        ("j.parquet", {}, r"name the label's with data.label \(there are img, y\)"),
        ("i.parquet", {"classes": 2}, "found the label '2', but data.classes=2"),
        ("i.parquet", {"labels": [0, 1], "regression": True}, "contradicts"),
    ]:
        with pytest.raises(DataError, match=message):
            load(f"parquet:{tmp_path}/{source}", **arguments)


def test_real_cifar(real_data: Path, tmp_path: Path) -> None:
    for part, n in (("train", 300), ("test", 100)):
        pq.write_table(pq.read_table(real_data / f"cifar10-{part}.parquet").slice(0, n), tmp_path / f"cifar10-{part}.parquet")
    f = load(f"parquet:{tmp_path}", {"kind": "iid", "clients": 3}, classes=10)
    assert (f.shape, f.classes, f.sizes.tolist()) == ((3, 32, 32), 10, [100, 100, 100])
    assert f.test is not None
    assert len(f.test) == 100
    # Channel means of CIFAR-10 are 0.491, 0.482, 0.447; 300 images give them within 0.05 (their means vary by about 0.12 each).
    np.testing.assert_allclose(f.train.x.mean(axis=(0, 2, 3)), [0.491, 0.482, 0.447], atol=0.05)
    first = pq.read_table(tmp_path / "cifar10-test.parquet").column("img")[0].as_py()["bytes"]
    np.testing.assert_array_equal(f.test.x[0], np.asarray(Image.open(io.BytesIO(first))).transpose(2, 0, 1) / np.float32(255))


# ---------------------------------------------------------------- Hugging Face, torchvision (stand-ins with the libraries' interfaces)


class FakeSplit:
    def __init__(self, table: Any) -> None:
        self.table = table

    def with_format(self, kind: str) -> FakeSplit:
        assert kind == "arrow"
        return self

    def __getitem__(self, rows: slice) -> Any:
        return self.table[rows.start or 0 : rows.stop] if rows.stop else self.table


def test_hf(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
    def load_dataset(name: str, subset: str | None, revision: str | None = None) -> Any:
        if name != "me/set":
            raise FileNotFoundError(f"no {name}")
        return {"train": FakeSplit(image_table(pixels)), "test": FakeSplit(image_table(pixels[:5]))}

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    f = load("hf:me/set")
    assert (len(f.train), f.shape, f.classes, len(f.test or [])) == (12, (3, 6, 5), 3, 5)
    with pytest.raises(DataError, match=r"no split 'trian' \(data.train\); it has train, test. Did you mean 'train'"):
        load("hf:me/set", train="trian")
    with pytest.raises(DataError, match="cannot be loaded"):
        load("hf:me/other")


def test_hf_saved_by_the_real_library(tmp_path: Path, pixels: np.ndarray) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"img": [Image.fromarray(p) for p in pixels], "label": [i % 3 for i in range(12)]}
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    made.save_to_disk(str(tmp_path / "saved"))
    f = load(f"hf:{tmp_path}/saved")
    np.testing.assert_array_equal(f.train.x, pixels.transpose(0, 3, 1, 2) / np.float32(255))


@pytest.mark.parametrize(("source", "module", "extra"), [("hf:a/b", "datasets", "hf"), ("torchvision:MNIST", "torchvision", "torchvision")])
def test_missing_extras_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, source: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'fedray\[{extra}\]'"):
        load(source)


class MNIST:
    """As torchvision's: arrays in memory."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if root == "nowhere":
            raise RuntimeError("Dataset not found.")
        n = 8 if train else 4
        self.data = np.random.default_rng(n).integers(0, 256, (n, 5, 6), dtype=np.uint8)
        self.targets = np.arange(n) % 4


class Pets:
    """As torchvision's sets that are read image by image."""

    def __init__(self, root: str, split: str = "train", download: bool = False, even: bool = True) -> None:
        self.rows = [(Image.new("RGB", (4 if even else 4 + i, 3), (i, 0, 0)), i % 2) for i in range(6 if split == "train" else 2)]

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=MNIST, Pets=Pets)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    f = load("torchvision:MNIST")
    assert (f.shape, f.classes, len(f.train), len(f.test or [])) == ((1, 5, 6), 4, 8, 4)
    f = load("torchvision:Pets", channels="last")
    assert (f.shape, f.classes, len(f.train), len(f.test or [])) == ((3, 3, 4), 2, 6, 2)
    assert f.train.x[:, 0, 0, 0].tolist() == [np.float32(i) / np.float32(255) for i in range(6)]
    for source, arguments, message in [
        ("MNITS", {}, "no data set 'MNITS'. Did you mean 'MNIST'"),
        ("MNIST", {"root": "nowhere"}, "check data.root, or set data.download=true"),
        ("Pets", {"options": {"even": False}, "channels": "last"}, "not of one size"),
    ]:
        with pytest.raises(DataError, match=message):
            load(f"torchvision:{source}", **arguments)


# ---------------------------------------------------------------- the user's own


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


def test_python_functions(own: Any) -> None:
    own.pair = lambda n=6: (np.ones((n, 2)), np.arange(n) % 2)
    own.four = lambda: (np.ones((6, 2)), ["a", "b"] * 3, np.ones((2, 2)), ["b", "b"])
    own.records = lambda: Records(np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    own.clients = lambda: {"x": (np.zeros((2, 3)), [1, 1]), "w": (np.ones((1, 3)), [2])}
    assert len(load("python:my_data:pair", n=8).train) == 8
    f = load("python:my_data:four")
    assert (f.train.y.tolist(), f.test is not None and f.test.y.tolist()) == ([0, 1, 0, 1, 0, 1], [1, 1])
    assert load("python:my_data:records").classes is None
    f = load("python:my_data:clients", {"kind": "natural"})
    assert (f.names, f.sizes.tolist(), f.train.y.tolist()) == (["x", "w"], [2, 1], [0, 0, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 2)), r"should give \(x, y\).*but gave ndarray"),
        ((1, 2, 3, 4, 5), "gave tuple of 5"),
        ({}, "gave a dict without a client"),
        ({"a": (np.ones((2, 2)), [0, 1]), "b": (np.ones((2, 3)), [0, 1])}, r"client b\): has records of \(3,\)"),
        ({"a/b": (np.ones((2, 2)), [0, 1])}, "'a/b' cannot be a client's name"),
        ((np.ones((3, 2)), [0, 1]), "3 records but 2 labels"),
        ((np.ones((0, 2)), []), "holds no records"),
        (([[1, 2], [3]], [0, 1]), "not one array"),
        ((np.array([[1.0, np.nan], [1, 1]]), [0, 1]), "record 1 has a feature that is not finite"),
        ((np.array([[1.0, 1], [np.inf, 1]]), [0, 1]), "record 2 has a feature that is not finite"),
        ((np.array([[1e300, 1]]), [0]), "record 1 has a feature that is not finite"),
        ((np.array([["a"]]), [0]), "not a number type"),
        ((np.ones((2, 2)), np.array([0.0, np.nan])), "1 of 2 labels are missing"),
        ((np.ones((2, 2)), np.array(1.0)), "one label for each record"),
        ((np.ones((2, 2)), np.array([["a", "b"], ["b", "a"]])), "several labels a record are of type"),
        ((np.ones((2, 2)), np.array([[1.0, np.nan], [0.0, 1.0]])), "1 of 2 labels are missing"),
        ((np.ones((2, 2)), np.eye(2), np.ones((2, 2)), np.eye(2, 3)), r"\(2,\) and \(3,\) in different parts"),
        ({"a": (np.ones((2, 2)), np.eye(2)), "b": (np.ones((2, 2)), np.eye(2, 3))}, r"client b\): has targets of shape \(3,\)"),
        ((np.ones((2, 2)), np.array([1j, 2j])), "labels are of type complex128"),
        ((np.ones((2, 2)), [0, 1], np.ones((1, 3)), [0]), "they must agree"),
        ((np.ones((2, 2)), [0, 1], np.ones((1, 2)), ["x"]), "labels are of different types in different parts"),
    ],
)
def test_python_functions_that_give_something_else(own: Any, value: Any, message: str) -> None:
    own.give = lambda: value
    with pytest.raises(DataError, match=message):
        load("python:my_data:give", {"kind": "natural"} if isinstance(value, dict) else ONE)


def test_python_arguments_and_imports_are_checked(own: Any) -> None:
    def give(scale: float) -> Any:
        return np.ones((3, 2)) * scale, [0, 1, 0]

    own.give, own.value = give, 3
    for source, arguments, message in [
        ("python:my_data:give", {"scal": 1.0}, r"data\.scal: unknown argument of give \(it takes scale\). Did you mean 'scale'"),
        ("python:my_data:give", {}, r"data\.scale: give needs it"),
        ("python:my_data:other", {}, "has no 'other'"),
        ("python:my_data:value", {}, "neither a function nor a class"),
        ("python:not_there:give", {}, "cannot import 'not_there'"),
        ("python:my_data", {}, "should read python:package.module:name"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check(Data.model_validate({"source": source, "partition": ONE, **arguments}))


# ---------------------------------------------------------------- what every source goes through


def test_labels_are_numbered_over_training_and_test_set() -> None:
    raw = build("here", np.ones((3, 1)), [-1, 7, 7], test=(np.ones((2, 1)), [3, -1]))
    assert raw.classes == 3
    assert raw.y.tolist() == [0, 2, 2]
    assert raw.test is not None
    assert raw.test[1].tolist() == [1, 0]


def test_declared_classes_keep_labels_as_they_are() -> None:
    raw = build("here", np.ones((3, 1)), [1.0, 3.0, 3.0], classes=5)
    assert (raw.classes, raw.y.tolist(), raw.y.dtype) == (5, [1, 3, 3], np.int64)
    for labels in ([0, 5, 1], [-1, 0, 1], ["a", "b", "c"]):
        with pytest.raises(DataError, match="integers 0 to 4"):
            build("here", np.ones((3, 1)), labels, classes=5)
    with pytest.raises(DataError, match="not whole numbers"):
        build("here", np.ones((2, 1)), [0.5, 1.0], classes=5)


def test_flat_features_get_an_axis_and_columns_of_labels_lose_it() -> None:
    raw = build("here", np.arange(4.0), np.array([[0], [1], [0], [1]]))
    assert isinstance(raw, Raw)
    assert (raw.x.shape, raw.y.shape) == ((4, 1), (4,))


def test_gather_scales_images_only() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    np.testing.assert_array_equal(gather(x, np.array([2, 0])), x[[2, 0]] / np.float32(255))
    assert gather(x.astype(np.int64), np.array([1])).tolist() == [[3, 4, 5]]
    assert gather(x, np.array([], dtype=np.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"source": "sklearn:digit"}, "scikit-learn has no 'digit' here; .* Did you mean 'digits'"),
        ({"source": "sklearn:iris", "image": True}, r"data\.image: iris holds no images"),
        (
            {"source": "sklearn:digits", "imag": True},
            r"data\.imag: unknown argument of sklearn \(it takes classes, image, labels\). Did you mean 'image'",
        ),
        ({"source": "sklearn:digits", "image": "maybe"}, r"data\.image: "),
        ({"source": "skleam:digits"}, "'skleam' is not known; use one of .* Did you mean 'sklearn'"),
        ({"source": "digits"}, "should read KIND:WHERE"),
        ({"source": "npz:"}, "should read KIND:WHERE"),
        (
            {"source": "sklearn:digits", "partition": {"kind": "dirichlet", "clients": 3, "alhpa": 1.0}},
            r"data\.partition\.alhpa: unknown .* 'alpha'",
        ),
        ({"source": "sklearn:digits", "partition": {"kind": "dirichlet", "clients": 3}}, r"data\.partition\.alpha: dirichlet needs it"),
        ({"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 0}}, r"data\.partition\.clients: should be 1 or more"),
        ({"source": "sklearn:digits", "partition": {"kind": "idd", "clients": 3}}, r"data\.partition\.kind: 'idd' is not known.* 'iid'"),
        ({"source": "sklearn:digits", "normalize": {"kind": "unitnorm"}}, r"data\.normalize\.kind: 'unitnorm' is not known.* 'unit_norm'"),
        ({"source": "sklearn:digits", "normalize": {"kind": "constants", "std": 0.0}}, r"data\.normalize\.std: should be above 0"),
        ({"source": "sklearn:digits", "normalize": {"kind": "standardize_client"}}, r"data\.holdout\.at=clients"),
    ],
)
def test_wrong_sections_are_refused_before_anything_is_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(Data.model_validate(section))


def _named(name: str, function: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((6, 2), len(name) + function, np.float32), np.arange(6) % 2


def test_a_users_function_may_call_its_arguments_what_it_likes() -> None:
    found = python(f"{__name__}:_named", classes=2, name="four", function=3)
    assert isinstance(found, Whole)
    assert found.load().x[0].tolist() == [7.0, 7.0]
