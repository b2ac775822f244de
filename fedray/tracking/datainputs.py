"""Describes a run's data as MLflow data sets: names, sizes and schema, without any record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: The contexts of a run's two data sets: the clients' records, and the driver's records that are kept out of training.
TRAINING, HELD_OUT = "training", "held out"


def describe_data(partition: Mapping[str, Any], sizes: Sequence[int], params: Mapping[str, str]) -> list[Any]:
    """Return an MLflow ``DatasetInput`` for the clients' records, and one for the driver's held-out records if there are any.

    Args:
        partition: content of ``partition.json``.
        sizes: number of records of each client; empty if that is not public.
        params: the run's params.
    """
    if not partition:
        return []
    source = params.get("data.source", str(partition.get("source", "unknown")))
    found = str(partition.get("digest") or hashlib.sha256(json.dumps([source, *sizes]).encode()).hexdigest())
    clients = {"clients": partition.get("clients", len(sizes))}
    if sizes:
        clients |= {"records": sum(sizes), "smallest_client": min(sizes), "largest_client": max(sizes)}
    about = {"source": source, "partition": params.get("data.partition.kind")}
    schema = _schema(partition)
    inputs = [_input(TRAINING, source, found, about, schema, clients)]
    held = partition.get("test_records")
    if held:
        digest = hashlib.sha256(f"{found}/held out/{held}".encode()).hexdigest()
        fraction = params.get("data.holdout.fraction")
        inputs.append(_input(HELD_OUT, source, digest, about | {"fraction": fraction}, schema, {"records": held}))
    return inputs


def evaluated_on(inputs: Sequence[Any]) -> tuple[str, str] | None:
    """Name and digest of the data set that the driver's metrics are measured on; None if there is none."""
    held = [i.dataset for i in inputs if i.tags[0].value == HELD_OUT]
    return (held[0].name, held[0].digest) if held else None


def _input(context: str, source: str, digest: str, about: Mapping[str, Any], schema: str, profile: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    short = source.rpartition("/")[2]
    described = Dataset(
        name=(f"{short}, {context}" if context != TRAINING else short)[:500],
        digest=digest[:8],
        source_type="fedray",
        source=json.dumps({**about, "sha256": digest}),
        schema=schema,
        profile=json.dumps(profile),
    )
    return DatasetInput(described, tags=[InputTag("mlflow.data.context", context)])


def _schema(partition: Mapping[str, Any]) -> str:
    """The records' inputs and target as MLflow's JSON: named columns of a table, else tensors."""
    import numpy as np
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    model = partition.get("model") or {}
    columns = model.get("columns") or []
    classes = partition.get("class_labels") or []
    if columns:
        named = [c if isinstance(c, Mapping) else {"name": c} for c in columns]
        texts = [any(isinstance(v, str) for v in c.get("values") or ()) for c in named]
        specs = [ColSpec(DataType.string if text else DataType.double, str(c["name"])) for c, text in zip(named, texts, strict=True)]
        target = DataType.string if any(isinstance(label, str) for label in classes) else DataType.long if classes else DataType.double
        return json.dumps({"mlflow_colspec": Schema([*specs, ColSpec(target, "target")]).to_dict()})
    inputs = model.get("inputs") or [{"name": None, "shape": model.get("input_shape", []), "tokens": model.get("tokens")}]
    features = [TensorSpec(np.dtype("int64" if i["tokens"] else "float32"), (-1, *i["shape"]), i["name"]) for i in inputs]
    goal = TensorSpec(np.dtype("int64" if classes else "float32"), (-1,))
    return json.dumps(TensorDatasetSchema(Schema(features), Schema([goal])).to_dict())
