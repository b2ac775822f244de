"""The trained model for raw rows: with the encoding, scaling and normalisation of training inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.choices import LossChoice
from fedray.config import Config
from fedray.data import rows
from fedray.data.dataset import source_arguments, transform_of
from fedray.data.packing import pack
from fedray.data.table import Column, raw_columns
from fedray.data.transforms import Transform
from fedray.experiment.finished import trained_model
from fedray.inputs import Input, described
from fedray.models.adapters import merged
from fedray.runfiles import RunFiles
from fedray.storage import read_json, reading
from fedray.tracking.modelfolder import About, Built, ColumnRows
from fedray.training.losses import find_loss


class Served(nn.Module):
    """A trained model that takes raw records ``[n, *shape]``: encodes categories, divides by the scale, normalises, predicts.

    Args:
        model: as trained.
        columns: of a table; a value that is not among its column's categories gives NaN, never another category's outputs.
        scale: divisor of raw values.
        transform: ``data.normalize``; must have ``in_torch``.
    """

    def __init__(self, model: nn.Module, columns: Sequence[Column], scale: float, transform: Transform) -> None:
        super().__init__()
        self.model, self._scale, self._transform = model, scale, transform
        self._columns = [(tuple(rows.codes(list(c.values))), c.first) if c.values is not None else None for c in columns]

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 outputs ``[n, outputs]`` for raw records ``[n, *shape]``."""
        if any(column is not None for column in self._columns):
            x = torch.cat([_expanded(x[:, n : n + 1], column) for n, column in enumerate(self._columns)], dim=1)
        if self._scale != 1:
            x = x.to(torch.float32) / self._scale
        assert self._transform.in_torch is not None
        outputs: Tensor = self.model(self._transform.in_torch(x))
        return outputs


def _expanded(cells: Tensor, column: tuple[tuple[float, ...], int] | None) -> Tensor:
    if column is None:
        return cells
    values, first = column
    one_hot = (cells == cells.new_tensor(values)).to(cells.dtype)
    return one_hot[:, first:].where(one_hot.sum(1, keepdim=True) > 0, one_hot.new_full((), float("nan")))


@dataclass(frozen=True)
class _Facts:
    """What ``partition.json`` says about a run's data. Data with a scale are pixels, not a table, even if its features have names."""

    columns: Sequence[str]
    scale: float
    class_labels: Sequence[Any]
    shape: tuple[int, ...]
    tokens: bool
    inputs: tuple[Input, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> _Facts:
        model = document["model"]
        scale = model.get("scale", 1)
        columns = model.get("columns", []) if scale == 1 else []
        return cls(columns, scale, document.get("class_labels", []), tuple(model["input_shape"]), model["tokens"], _inputs(document))


def served_model(files: RunFiles, config: Config) -> Built:
    """Rebuild the model of a finished run for raw rows where that is possible, with an example record and a description of both ends."""
    trained, example = trained_model(files, config)
    model = merged(trained)  # users get adapters and base as one model
    with reading(files.partition):
        document = read_json(files.partition) or {}
        facts, features = _Facts.of(document), document["model"].get("columns", [])
    transform = transform_of(config.data).of(features)
    label = config.data.arguments.get("label")
    gives = _gives(config.training.loss, facts.class_labels, label if isinstance(label, list) else (), example, model)
    if transform.in_torch is None:
        return Built(model, example, _as_trained(config, facts, transform, gives))
    columns = raw_columns(facts.columns, source_arguments(config.data))
    served = Served(model, columns, facts.scale, transform).eval()
    if columns:
        example = np.array([[(c.values and rows.codes(list(c.values))[0]) or 0.0 for c in columns]], dtype=np.float32)
    elif facts.scale == 255:
        example = np.zeros(example.shape, dtype=np.uint8)
    return Built(served, example, About(_takes(config, facts, columns), gives, facts.class_labels, _table(columns)))


def _as_trained(config: Config, facts: _Facts, transform: Transform, gives: str) -> About:
    """Describe a model that cannot take raw rows, because its user must first normalise them as training did."""
    kind = config.data.normalize.kind
    how = "with each client's own mean and standard deviation" if kind == "standardize_client" else "by it"
    why = "which no single model can hold" if transform.private_statistics else "which has no in_torch"
    takes = f"NOT raw rows: takes features that were normalised {how} (data.normalize={kind}, {why})"
    takes += ", after 0/1 features were made of categories" if config.data.arguments.get("categories") else ""
    return About(takes, gives, facts.class_labels, _table([Column(name) for name in facts.columns]), raw=False)


def _table(columns: Sequence[Column]) -> ColumnRows | None:
    described = [{"name": c.name} if c.values is None else {"name": c.name, "values": list(c.values)} for c in columns]
    return ColumnRows(described, rows.FILE, Path(rows.__file__), "fedray_rows") if columns else None


def _takes(config: Config, facts: _Facts, columns: Sequence[Column]) -> str:
    if columns:
        numbers = any(column.values is None for column in columns)
        types = " (type any: numbers, whole or not)" if numbers else ""
        return f"Takes raw rows: a table with the {len(columns)} named columns of the signature, in any order{types}"
    if facts.inputs:
        return (
            f"Takes arrays of {facts.shape[0]} numbers for each record, in which its inputs stand side by side, each flattened: "
            f"{described(facts.inputs)}; images as numbers 0 to 1"
        )
    inside = [] if config.data.normalize.kind == "none" else [f"data.normalize={config.data.normalize.kind}"]
    inside += [f"the division by {facts.scale:g}"] if facts.scale != 1 else []
    shape = "x".join(map(str, facts.shape))
    kind = "token ids" if facts.tokens else "bytes 0..255" if facts.scale == 255 else "numbers"
    return f"Takes raw records: {kind} of shape {shape}" + (f" ({' and '.join(inside)} is inside)" if inside else "")


def _gives(loss: LossChoice, labels: Sequence[Any], targets: Sequence[str], example: npt.NDArray[Any], model: nn.Module) -> str:
    with torch.no_grad():
        given = model(torch.from_numpy(np.repeat(example, 2, axis=0)))
    outputs, found = given.numel() // 2, find_loss(loss)
    if found.task == "values":
        return "gives the predicted number"
    if found.task == "survival":
        return "gives the logarithm of a relative risk: the larger, the earlier the event"
    if found.task == "tokens":
        return f"gives a logit for each of {given.shape[-1]} tokens that may come next, at each of {given.shape[1]} positions"
    if found.task == "labels":
        return f"gives a logit for each of {outputs} labels, above 0 where it holds" + (
            f": {', '.join(map(str, targets))}" if targets else ""
        )
    if found.classes == 2 and outputs == 1:
        zero, one = [f" ({label})" for label in labels] or ["", ""]
        return f"gives one logit: above 0 is class 1{one}, else class 0{zero}"
    if loss.kind.startswith("python:"):
        return f"gives {outputs} number{'s' if outputs > 1 else ''} for a record, as the loss {loss} takes them"
    shown = ", ".join(f"{n} = {label}" for n, label in list(enumerate(labels))[:10]) + (", ..." if len(labels) > 10 else "")
    named = [str(label) for label in labels] != [str(n) for n in range(len(labels))]
    return f"gives a logit for each of {outputs} classes, of which the largest is the class" + (f": {shown}" if named else "")


def _inputs(document: Mapping[str, Any]) -> tuple[Input, ...]:
    return tuple(Input.of(one) for one in document.get("model", {}).get("inputs", []))


def predict(files: RunFiles, config: Config, given: Any) -> npt.NDArray[np.float32]:
    """Return the model's outputs, float32 ``[n, outputs]``, for raw rows: a pandas frame for a table, a dict of several inputs, else an
    array ``[n, *shape]``.

    Raises:
        DataError: the dict holds other inputs than the model takes.
        ValueError: the model does not take such rows.
    """
    built = served_model(files, config)
    table = built.about.table
    with reading(files.partition):
        inputs = _inputs(read_json(files.partition) or {})
    if isinstance(given, Mapping):
        if not inputs:
            raise ValueError("records are a dict of inputs, but the model takes one array.")
        given = pack(given, "the records", inputs)[0]
    x = np.asarray(given) if table is None else rows.RowEncoder(table.columns)(given)
    if table is None:
        if x.shape[1:] != built.example.shape[1:]:
            raise ValueError(f"records have shape {x.shape[1:]}, but the model takes {built.example.shape[1:]}.")
        if x.dtype.kind not in ("iu" if built.example.dtype.kind in "iu" else "iuf"):
            raise ValueError(f"records are of type {x.dtype}, but the model takes {built.example.dtype}.")
        x = x.astype(built.example.dtype, copy=False)
    with torch.no_grad():
        return torch.cat([built.model(part) for part in torch.split(torch.from_numpy(x.copy()), 1000)]).numpy()
