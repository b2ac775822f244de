"""The registered model takes rows as people have them: each is scored in a fresh process, against the run's own evaluation."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multimodal
import numpy as np
import pandas as pd
import pytest
import torch
from paths import ROOT
from sklearn import datasets
from survivors import survivors
from torch import nn

from fedray.config import Config
from fedray.configfile import build_config, load_config
from fedray.data import rows
from fedray.data.dataset import load_federation
from fedray.data.packing import pack
from fedray.data.records import Federation
from fedray.data.table import Column, raw_columns
from fedray.data.transforms import TRANSFORMS, Transform, unit_norm
from fedray.errors import DataError
from fedray.experiment.launch import Result
from fedray.experiment.served import predict, served_model
from fedray.parameters import Layout, get_vector
from fedray.planning.preparation import prepare
from fedray.runfiles import RunFiles
from fedray.tracking.modelfolder import SavedModel, save_model
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss

FRESH = """
import sys
import mlflow, numpy as np, pandas as pd
for folder, given, made in zip(*[iter(sys.argv[1:])] * 3):
    model = mlflow.pyfunc.load_model(folder)
    rows = np.load(given) if given.endswith("npy") else pd.read_parquet(given)
    np.save(made, np.asarray(model.predict(rows)))
assert not any(name.split(".")[0] == "fedray" for name in sys.modules), "it needs fedray"
"""


class Run:
    """A finished run made by hand: a model fitted to the federation's records, and the files that a run leaves."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        prepared = prepare(config)
        assert prepared.federation is not None and prepared.model is not None
        self.federation, made = prepared.federation, prepared.model
        train = self.federation.train
        self.model = made.facts.build()
        x, y, self.loss = torch.from_numpy(train.x), torch.from_numpy(train.y), find_loss(config.training.loss)
        optimizer = torch.optim.Adam(self.model.parameters(), 0.05)
        for _ in range(60):
            optimizer.zero_grad()
            self.loss(self.model(x), y).mean().backward()
            optimizer.step()
        layout = Layout.of(self.model)
        self.files = RunFiles(folder / "run")
        self.files.root.mkdir()
        self.files.save_model(layout, get_vector(self.model, layout))
        self.files.partition.write_text(json.dumps({"model": made.document(), "class_labels": list(prepared.class_labels)}))

    def saved(self) -> SavedModel:
        saved = save_model(lambda: served_model(self.files, self.config), "0" * 32, {}, {}, [], "ab", "Result.\n\nMore.")
        assert saved is not None
        return saved

    def outputs(self, saved: SavedModel, raw: Any) -> np.ndarray:
        """What MLflow makes of raw rows."""
        import mlflow.pyfunc

        return np.asarray(mlflow.pyfunc.load_model(str(saved.folder / "model")).predict(raw))

    def accuracy(self, records: Any) -> float:
        metrics = find_metrics(["accuracy"])
        return evaluate(self.model, torch.from_numpy(records.x), torch.from_numpy(records.y), metrics, self.loss)["accuracy"]

    @property
    def result(self) -> Result:
        return Result("completed", {}, self.files.root, self.config)


@dataclass
class Scored:
    """A run, its model as saved, raw test rows, their classes, and what a process without fedray made of the rows."""

    run: Run
    saved: SavedModel
    raw: Any
    classes: np.ndarray
    outputs: np.ndarray


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scored]:
    """Three models, scored in one fresh process."""
    folder, scored, command = tmp_path_factory.mktemp("fresh"), dict[str, Scored](), [sys.executable, "-c", FRESH]
    for name, (config, rows_of) in CASES.items():
        if config() is None:
            continue
        (folder / name).mkdir()
        run = Run(folder / name, config())
        raw, classes = rows_of(run)
        saved = run.saved()
        given = folder / f"{name}.{'npy' if isinstance(raw, np.ndarray) else 'parquet'}"
        np.save(given, raw) if isinstance(raw, np.ndarray) else raw.to_parquet(given)
        command += [str(saved.folder / "model"), str(given), str(folder / f"{name}.made.npy")]
        scored[name] = Scored(run, saved, raw, classes, np.empty(0))
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for name, entry in scored.items():
        entry.outputs = np.load(folder / f"{name}.made.npy")
    return scored


def made(folder: Path, **sections: Any) -> Run:
    raw = {"name": "served", "rounds": 1, "model": {"kind": "softmax"}, "training": {"batch_size": 8, "epochs": 1}}
    return Run(folder, build_config(raw | sections))


def bare(config: Config, **changes: Any) -> Federation:
    """The run's split, with the cells as they stand in the source."""
    data = config.data.model_dump() | {"normalize": {"kind": "none"}} | changes
    return load_federation(type(config.data).model_validate(data), config.seed)


PLAIN = [
    "training={lr: 0.1, batch_size: 8, epochs: 1, loss: binary_cross_entropy}",
    "clients={placement: hosted}",
    "privacy={regime: none}",
    "evaluation={metrics: [accuracy]}",
]


def digits() -> Config:
    return load_config(ROOT / "configs" / "digits.yaml")


def digits_rows(run: Run) -> tuple[np.ndarray, np.ndarray]:
    test = bare(run.config).test
    assert test is not None
    return (test.x * 16).astype(np.float32), test.y


def breast_cancer() -> Config:
    return load_config(ROOT / "configs" / "breast-cancer.yaml", PLAIN)


def breast_cancer_rows(run: Run) -> tuple[pd.DataFrame, np.ndarray]:
    test = bare(run.config).test
    assert test is not None
    frame = pd.DataFrame(test.x, columns=list(datasets.load_breast_cancer().feature_names)).iloc[:, ::-1]
    return frame.assign(id=range(len(frame))), test.y


def heart() -> Config | None:
    folder = Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data")) / "heart"
    overrides = [f"data.source=csv:{folder}", *PLAIN, "evaluation.federated=true"]
    return load_config(ROOT / "configs" / "heart-private.yaml", overrides) if folder.is_dir() else None


def heart_rows(run: Run) -> tuple[pd.DataFrame, np.ndarray]:
    test = bare(run.config, categories=None)
    assert test.client_test is not None
    frame = pd.DataFrame(test.client_test.x, columns=test.columns)
    return frame.assign(cp=frame["cp"].astype(int))[list(test.columns)[::-1]], test.client_test.y  # whole numbers, as some files have them


CASES: dict[str, tuple[Callable[[], Config | None], Callable[[Run], tuple[Any, np.ndarray]]]] = {
    "digits": (digits, digits_rows),
    "breast-cancer": (breast_cancer, breast_cancer_rows),
    "heart": (heart, heart_rows),
}


def test_digits_score_raw_grey_values_at_the_runs_accuracy(fresh: dict[str, Scored]) -> None:
    d = fresh["digits"]
    assert set(d.raw.ravel().tolist()) <= set(range(17))
    assert (d.outputs.argmax(1) == d.classes).mean() == d.run.accuracy(d.run.federation.test) > 0.8
    first, said, last = d.saved.description.split("\n\n")
    assert (first, last) == ("Result.", "More.")
    assert said == (
        "Takes raw records: numbers of shape 64 (data.normalize=unit_norm and the division by 16 is inside); gives a logit for each of "
        "10 classes, of which the largest is the class."
    )
    assert d.run.result.predict(d.raw.astype(np.float64)) == pytest.approx(d.outputs, abs=1e-5)
    with pytest.raises(ValueError, match=r"records have shape \(8, 8\), but the model takes \(64,\)"):
        d.run.result.predict(d.raw.reshape(-1, 8, 8))


def test_breast_cancer_scores_raw_named_columns_in_any_order(fresh: dict[str, Scored]) -> None:
    b = fresh["breast-cancer"]
    assert b.outputs.shape == (len(b.raw), 1)
    assert ((b.outputs[:, 0] > 0) == b.classes).mean() == b.run.accuracy(b.run.federation.test) > 0.9
    assert b.saved.fields.metadata["fedray_classes"] == {"0": "malignant", "1": "benign"}
    assert b.saved.description.split("\n\n")[1] == (
        "Takes raw rows: a table with the 30 named columns of the signature, in any order (type any: numbers, whole or not); gives one "
        "logit: above 0 is class 1 (benign), else class 0 (malignant)."
    )
    assert json.loads(b.saved.tags["classes"]) == ["malignant", "benign"]
    assert b.run.result.predict(b.raw) == pytest.approx(b.outputs, abs=1e-5)
    with pytest.raises(ValueError, match="the rows lack the columns 'mean radius'"):
        b.run.result.predict(b.raw.drop(columns="mean radius"))


def test_heart_scores_rows_of_the_hospitals_files(fresh: dict[str, Scored], real_data: Path) -> None:
    h = fresh["heart"]
    assert h.raw.shape[1] == 10
    assert ((h.outputs[:, 0] > 0) == h.classes).mean() == h.run.accuracy(h.run.federation.client_test) > 0.7
    with pytest.raises(ValueError, match="column 'cp' has 7 in row 1, but the model knows only 1, 2, 3, 4"):
        h.run.result.predict(h.raw.assign(cp=7))


def test_text_categories_are_encoded_inside_and_unknown_ones_refused(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    colour, size = draws.choice(["red", "green", "blue"], 120), draws.integers(0, 50, 120)
    frame = pd.DataFrame({"size": size, "colour": colour, "kind": np.where((colour == "red") | (size > 40), "good", "bad")})
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = {
        "source": f"csv:{tmp_path / 'table.csv'}",
        "label": "kind",
        "labels": ["bad", "good"],
        "partition": {"kind": "iid", "clients": 2},
    }
    run = made(tmp_path, data=data | {"categories": {"colour": ["red", "green", "blue"]}, "normalize": {"kind": "constants", "std": 10.0}})
    saved = run.saved()
    raw = frame[["colour", "size"]]
    outputs = run.outputs(saved, raw)
    assert outputs.shape == (120, 2)
    expected = np.stack([size / 10, *[(colour == c) / 10 for c in ("red", "green", "blue")]], 1).astype(np.float32)
    with torch.no_grad():
        assert outputs == pytest.approx(run.model(torch.from_numpy(expected)).numpy(), abs=1e-5)
    assert [c.name for c in saved.fields.signature.inputs.inputs] == ["size", "colour"]
    by_name = {"colour=blue": 10.0, "colour=red": 10.0, "colour=green": 10.0, "size": 10.0}
    named = build_config(
        run.config.model_dump()
        | {"data": data | {"categories": {"colour": ["red", "green", "blue"]}, "normalize": {"kind": "constants", "std": by_name}}}
    )
    assert predict(run.files, named, raw) == pytest.approx(outputs, abs=1e-6)
    for bad, said in (
        (raw.assign(colour="pink"), "'colour' has 'pink' in row 1, but the model knows only red, green, blue"),
        (raw.assign(colour=raw["colour"].where(raw.index != 3)), "'colour' has a missing cell in row 4"),
        (raw.assign(size=raw["size"].where(raw.index != 5)), "'size' has .*nan.* in row 6, which is not a number"),
        (raw.assign(size="?"), r"'size' has '\?' in row 1, which is not a number"),
    ):
        with pytest.raises(ValueError, match=said):
            run.result.predict(bad)


def test_categories_that_are_booleans_are_encoded_inside(tmp_path: Path) -> None:
    frame = pd.DataFrame({"flag": [True, False] * 20, "y": [0, 1] * 20})
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = {"source": f"csv:{tmp_path / 'table.csv'}", "label": "y", "partition": {"kind": "iid", "clients": 2}}
    run = made(tmp_path, data=data | {"categories": {"flag": [True, False]}})
    with torch.no_grad():
        assert run.result.predict(frame[["flag"]][:2]) == pytest.approx(run.model(torch.eye(2)).numpy(), abs=1e-5)


def test_images_are_taken_as_bytes(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    x, y = draws.integers(0, 256, (60, 4, 4), dtype=np.uint8), draws.integers(0, 2, 60)
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y)
    run = made(tmp_path, data={"source": f"npz:{tmp_path / 'images.npz'}", "partition": {"kind": "iid", "clients": 2}})
    saved = run.saved()
    raw = x.reshape(-1, *run.federation.shape)
    outputs = run.outputs(saved, raw)
    with torch.no_grad():
        assert outputs == pytest.approx(run.model(torch.from_numpy(raw.astype(np.float32) / 255)).numpy(), abs=1e-5)
    assert saved.fields.signature.inputs.inputs[0].type == np.uint8
    with pytest.raises(ValueError, match="records are of type float32, but the model takes uint8"):
        run.result.predict(raw.astype(np.float32))


def test_what_cannot_be_inside_is_said_first(tmp_path: Path) -> None:
    data = {"source": "sklearn:wine", "partition": {"kind": "iid", "clients": 2}, "holdout": {"at": "clients"}}
    run = made(tmp_path, data=data | {"normalize": {"kind": "standardize_client"}}, evaluation={"federated": True})
    saved = run.saved()
    said = "NOT raw rows: takes features that were normalised with each client's own mean and standard deviation"
    assert saved.description.startswith(said)
    assert saved.fields.metadata["fedray_raw_rows"] is False
    test = run.federation.client_test
    assert test is not None
    frame = pd.DataFrame(test.x, columns=run.federation.columns)
    with torch.no_grad():
        assert run.result.predict(frame) == pytest.approx(run.model(torch.from_numpy(test.x)).numpy(), abs=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["none", "unit_norm", "constants", "per channel"])
def test_transforms_are_the_same_in_torch(kind: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).normal(size=(7, *shape)).astype(np.float32)
    x[2] = 0
    per_channel = {"mean": list(range(shape[0])), "std": [2.0 + n for n in range(shape[0])]}
    arguments = {"constants": {"mean": 0.5, "std": 3.0}, "per channel": per_channel}.get(kind, {})
    transform: Transform = TRANSFORMS["constants" if kind == "per channel" else kind](**arguments)
    assert transform.in_torch is not None
    found = transform.in_torch(torch.from_numpy(x.copy())).numpy()
    np.testing.assert_allclose(found, transform.fit(x[:0])(x.copy()), rtol=1e-6, atol=1e-7)
    assert unit_norm().in_torch is not None


def test_raw_columns_are_found_again_from_the_features() -> None:
    arguments = {"categories": {"cp": [1, 2, 3], "site": ["a", "b"]}, "drop_first": True}
    encoded = ["age", "cp=2", "cp=3", "dose=2", "site=b"]
    expected = [Column("age"), Column("cp", (1, 2, 3), 1), Column("dose=2"), Column("site", ("a", "b"), 1)]
    assert raw_columns(encoded, arguments) == expected
    assert raw_columns(["age"], {}) == [Column("age")]
    assert rows.codes([1, "2", 3.0]) == [1.0, 2.0, 3.0]
    assert rows.codes(["1", "x"]) == [0.0, 1.0]


def test_a_category_that_the_graph_does_not_know_gives_nan_and_no_other_category(tmp_path: Path) -> None:
    from fedray.experiment.served import Served

    served = Served(nn.Linear(3, 1), [Column("age"), Column("cp", (1, 2, 3), 1)], 1.0, TRANSFORMS["none"]())
    with torch.no_grad():
        found = served(torch.tensor([[5.0, 1.0], [5.0, 7.0]]))
    assert math.isfinite(found[0].item())
    assert math.isnan(found[1].item())


def test_a_model_of_several_inputs_takes_them_by_name_or_side_by_side(tmp_path: Path) -> None:
    section = {"source": "python:multimodal:clients", "classes": 2}
    training = {"lr": 0.1, "batch_size": 20, "epochs": 1}
    made = {"name": "served", "rounds": 1, "data": section, "model": {"kind": "late_fusion"}, "training": training}
    run = Run(tmp_path, build_config(made))
    x, _ = multimodal.records(7, 3)
    outputs = predict(run.files, run.config, x)
    assert outputs == pytest.approx(predict(run.files, run.config, pack(x, "here")[0]), abs=1e-6)
    saved = run.saved()
    assert "side by side, each flattened: image (1x4x4), table (3)" in saved.description
    assert run.outputs(saved, pack(x, "here")[0]) == pytest.approx(outputs, abs=1e-5)
    with pytest.raises(DataError, match="has the inputs table"):
        predict(run.files, run.config, {"table": x["table"]})


@pytest.mark.parametrize(
    ("loss", "columns", "said"),
    [
        ("cox", ["event", "time"], "gives the logarithm of a relative risk: the larger, the earlier the event"),
        ("bce", ["event", "other"], "gives a logit for each of 2 labels, above 0 where it holds: event, other"),
    ],
)
def test_what_models_of_several_targets_give_is_said(tmp_path: Path, loss: str, columns: list[str], said: str) -> None:
    frame = survivors(40, 0).assign(other=lambda f: (f.u1 > 0).astype(int))
    frame.drop(columns=list({"time", "other"} - set(columns))).to_csv(tmp_path / "table.csv", index=False)
    section = {"source": f"csv:{tmp_path / 'table.csv'}", "label": columns, "partition": {"kind": "iid", "clients": 2}}
    training = {"lr": 0.1, "batch_size": 20, "epochs": 1, "loss": loss}
    made = {
        "name": "served",
        "rounds": 1,
        "data": section,
        "model": {"kind": "mlp"},
        "training": training,
        "evaluation": {"metrics": ["loss"]},
    }
    run = Run(tmp_path, build_config(made))
    assert served_model(run.files, run.config).about.gives == said
    outputs = predict(run.files, run.config, frame[["u0", "u1", "u2", "u3"]])
    assert outputs.shape == (40, 1 if loss == "cox" else 2)
