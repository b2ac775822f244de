"""Saves a trained model as a folder in MLflow's format, with a description of its input and output.

The model is saved as a traced graph (pt2), which loads without unpickling code, and traced with an example of zeros, so that it contains
no client's record. A model of a table is called with named columns, by a loader whose source text lies in the folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedray.errors import first_line
from fedray.tracking.journal import Point
from fedray.tracking.mlflow_store import load_mlflow, log

if TYPE_CHECKING:
    from torch import nn

NAME = "model"
#: Characters of a tag; MLflow allows 5000.
LONGEST_TAG = 4000


@dataclass(frozen=True)
class ColumnRows:
    """The columns of a table, and the code that reads its rows.

    Attributes:
        columns: JSON data of each column: ``name``, and the ``values`` of a column of categories.
        file: name of the file with the columns in the model's folder.
        code: a Python file with ``_load_pyfunc``, which imports nothing of fedray.
        module: name of that file, without its ending, in the model's folder.
    """

    columns: Sequence[Mapping[str, Any]]
    file: str
    code: Path
    module: str


@dataclass(frozen=True)
class About:
    """Describes a model's input and output.

    Attributes:
        takes: beginning of a sentence, on the input.
        gives: end of that sentence, on the output.
        class_labels: the data's label of each class, in class order; empty in regression.
        table: the columns of a table; None if the input is an array.
        raw: whether the model takes records as the user has them.
    """

    takes: str = "Takes an array as the signature says"
    gives: str = "gives the model's outputs"
    class_labels: Sequence[Any] = ()
    table: ColumnRows | None = None
    raw: bool = True

    @property
    def sentence(self) -> str:
        """One sentence on input and output."""
        return f"{self.takes}; {self.gives}."

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON data for the model's metadata, beside its signature."""
        classes = {"fedray_classes": {str(n): label for n, label in enumerate(self.class_labels)}} if self.class_labels else {}
        return {"fedray_input": self.takes, "fedray_output": self.gives, "fedray_raw_rows": self.raw, **classes}

    @property
    def tags(self) -> dict[str, str]:
        """The metadata as tags, without the classes if they are too long for a tag."""
        classes = json.dumps(list(self.class_labels), ensure_ascii=False)
        shown = {"classes": classes} if self.class_labels and len(classes) <= LONGEST_TAG else {}
        return {"input": self.takes[:LONGEST_TAG], "output": self.gives[:LONGEST_TAG], **shown}


class Built(NamedTuple):
    """A model with its weights, an example batch ``[n, ...]`` of which only shape and dtype are used, and a description of both ends."""

    model: nn.Module
    example: npt.NDArray[Any]
    about: About = About()


#: Builds the final model: a :class:`Built`, or its first two entries.
ModelBuilder = Callable[[], "Built | tuple[nn.Module, npt.NDArray[Any]]"]


@dataclass(frozen=True)
class SavedModel:
    """A model saved in MLflow's format.

    Attributes:
        folder: holds it; a temporary folder.
        fields: the ``Model`` that the folder's MLmodel file was written from.
        params: settings shown with the model.
        tags: epsilon, delta, unit, accountant, claim, ledger_sha256, model_sha256, input, output, classes.
        metrics: the final metrics, linked to the model.
        sha256: identifies the weights.
        description: of the registered version, Markdown.
        whole: the run did all that was planned, so that the registered version may take the alias.
        measured_on: name and digest of the MLflow data set that ``metrics`` below ``eval/`` are measured on.
    """

    folder: Path
    fields: Any
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Sequence[Point]
    sha256: str
    description: str = ""
    whole: bool = True
    measured_on: tuple[str, str] | None = None


def save_model(
    builder: ModelBuilder,
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Sequence[Point],
    sha256: str,
    description: str = "",
    whole: bool = True,
    measured_on: tuple[str, str] | None = None,
) -> SavedModel | None:
    """Build and save the model for :func:`fedray.tracking.registry.log_final_model`.

    Returns:
        The saved model, in its description a sentence on input and output: behind the first paragraph, but first
        where the model does not take raw rows. None if ``torch.export`` cannot trace the model, in
        which case the log says why.
    """
    load_mlflow()
    folder = Path(tempfile.mkdtemp(prefix="fedray-model-"))
    try:
        built = Built(*builder())
        fields = _save(built, folder, run_id)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        log.warning(
            "the model is not in MLflow, because it cannot be exported (%s); model.safetensors has its weights.", first_line(error)[:200]
        )
        return None
    about = built.about
    first, _, rest = description.partition("\n\n")
    parts = (first, about.sentence, rest) if about.raw else (about.sentence, first, rest)
    described = "\n\n".join(part for part in parts if part)
    return SavedModel(folder, fields, dict(params), dict(tags) | about.tags, list(metrics), sha256, described, whole, measured_on)


def _save(built: Built, folder: Path, run_id: str) -> Any:
    import mlflow.pytorch
    import torch
    from mlflow.models import Model, infer_signature

    # Two records: a batch of one would be traced as a constant.
    example = np.zeros((2, *built.example.shape[1:]), dtype=built.example.dtype)
    model = built.model.to("cpu").eval()
    with torch.no_grad():
        outputs = model(torch.from_numpy(example)).numpy()
    fields = Model(artifact_path=NAME, run_id=run_id, metadata=built.about.metadata)
    needed = [f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"]
    target = folder / NAME
    mlflow.pytorch.save_model(
        model,
        str(target),
        mlflow_model=fields,
        signature=infer_signature(example, outputs),
        input_example=example,
        pip_requirements=needed,
    )
    fields.flavors["python_function"]["config"] = {"device": "cpu"}  # a graph that was traced there runs nowhere else
    if built.about.table is not None:
        with tempfile.TemporaryDirectory() as scratch:
            _name_columns(fields, built.about.table, target, Path(scratch), outputs, needed)
    fields.save(str(target / "MLmodel"))
    return fields


def _name_columns(fields: Any, table: ColumnRows, target: Path, scratch: Path, outputs: Any, needed: Sequence[str]) -> None:
    """Give a saved model that takes columns by position a caller that takes them by name, and the signature for that."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.models.signature import infer_signature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType, DataType

    (scratch / f"{table.module}.py").write_bytes(table.code.read_bytes())
    data = target / "data"
    (data / table.file).write_text(json.dumps([dict(c) for c in table.columns], ensure_ascii=False), encoding="utf-8")
    texts = [any(isinstance(v, str) for v in c.get("values") or ()) for c in table.columns]
    # A column of whole numbers comes as int64 or float64, by what a file happens to hold; MLflow's double refuses the one, its long the other.
    inputs = Schema([ColSpec(DataType.string if text else AnyType(), c["name"]) for c, text in zip(table.columns, texts, strict=True)])
    row = {c["name"]: (c.get("values") or [0.0])[0] for c in table.columns}
    named = Model(metadata=fields.metadata)
    mlflow.pyfunc.save_model(
        str(scratch / "named"),
        loader_module=table.module,
        data_path=str(data),
        code_paths=[str(scratch / f"{table.module}.py")],
        mlflow_model=named,
        signature=ModelSignature(inputs=inputs, outputs=infer_signature(outputs, outputs).outputs),
        input_example=pd.DataFrame([row, row]),
        pip_requirements=[*needed, f"pandas=={pd.__version__}"],
    )
    shutil.copytree(scratch / "named", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data", "MLmodel"))
    fields.signature, fields.saved_input_example_info = named.signature, named.saved_input_example_info
    fields.flavors["python_function"] = named.flavors["python_function"] | {"data": fields.flavors["pytorch"]["model_data"]}
