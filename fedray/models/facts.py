"""What every process needs to know to make a run's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from torch import nn

from fedray.choices import ModelChoice
from fedray.components import nearest
from fedray.errors import ConfigError
from fedray.frozen import check_frozen, frozen_digest
from fedray.inputs import Input
from fedray.models.build import build_model, untried_model, without_weights
from fedray.parameters import Layout, Vector, belongs, get_vector
from fedray.rng import torch_seed

#: The buffer in which batch normalisation counts batches; each process counts its own.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class ModelFacts:
    """A run's model without its weights.

    Attributes:
        choice: the config's ``model`` section.
        seed: the run's seed.
        shape: of one record.
        outputs: number of outputs for a record.
        dtype: of the records, float32 or int64 (tokens).
        layout: what is exchanged of it.
        frozen: digest of its frozen parameters; empty where nothing is frozen.
        positions: at how many positions of a record it gives its outputs; None: once for each record.
        inputs: the inputs that stand side by side in a record; empty if a record is one array.
        personal: the layers that stay with the clients.
        exchanged: whether all its tensors are exchanged, so that :meth:`build` need not read ``model.weights``.
    """

    choice: ModelChoice
    seed: int
    shape: tuple[int, ...]
    outputs: int
    dtype: torch.dtype
    layout: Layout
    frozen: str = ""
    positions: int | None = None
    inputs: tuple[Input, ...] = ()
    personal: Layout = Layout(())  # noqa: RUF009 - frozen
    exchanged: bool = False

    @property
    def tokens(self) -> bool:
        """Records are token numbers."""
        return self.dtype == torch.int64

    def document(self) -> dict[str, Any]:
        """The facts as JSON data."""
        return {
            "choice": to_jsonable_python(self.choice.model_dump(), inf_nan_mode="constants"),
            "seed": self.seed,
            "shape": list(self.shape),
            "outputs": self.outputs,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": self.layout.document(),
            "frozen": self.frozen,
            "positions": self.positions,
            "inputs": [i.document() for i in self.inputs],
            "personal": self.personal.document(),
            "exchanged": self.exchanged,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ModelFacts:
        """The facts of :meth:`document`."""
        return cls(
            ModelChoice.model_validate(document["choice"]),
            document["seed"],
            tuple(document["shape"]),
            document["outputs"],
            getattr(torch, document["dtype"]),
            Layout.read(document["layout"]),
            document["frozen"],
            document["positions"],
            tuple(Input.of(i) for i in document["inputs"]),
            Layout.read(document["personal"]),
            document["exchanged"],
        )

    @property
    def _read(self) -> ModelChoice:
        return without_weights(self.choice) if self.exchanged else self.choice

    def build(self) -> nn.Module:
        """The model as the run began with it, on the CPU; see :func:`fedray.models.build.build_model`. Where all tensors are exchanged, their
        values are not those of ``model.weights``, which other processes need not be able to read.

        Raises:
            ConfigError: its frozen parameters are others in this process.
        """
        model = build_model(self._read, self.shape, self.outputs, self.seed, self.dtype, self.positions, self.inputs)
        check_frozen(model, self.choice.kind, self.frozen)
        return model

    def another(self, number: int) -> Vector:
        """What is exchanged of the model as it would begin with another seed, which follows from the run's and ``number``."""
        seed = torch_seed(self.seed, "another model", number)
        model = build_model(self.choice, self.shape, self.outputs, seed, self.dtype, self.positions, self.inputs)
        return get_vector(model, self.layout)

    def untried(self) -> nn.Module:
        """The model before it has been run for the first time, wherever it does not need that to have its parameters."""
        return untried_model(self._read, self.shape, self.outputs, self.seed, self.dtype, self.positions, self.inputs)


def first_model(
    choice: ModelChoice,
    shape: tuple[int, ...],
    outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    positions: int | None = None,
    inputs: Sequence[Input] = (),
    personal: Sequence[str] = (),
) -> tuple[nn.Module, ModelFacts]:
    """A run's model, and what other processes need to know to make it; arguments and errors as for ``build_model``.

    Args:
        personal: names, or beginnings of names, of the layers that stay with the clients.

    Raises:
        ConfigError: also where one of them is no name of the model, or nothing is left to exchange.
    """
    model = build_model(choice, shape, outputs, seed, dtype, positions, inputs)
    frozen = frozen_digest(model, choice.kind)
    shared, own = Layout.of(model, personal), Layout.personal(model, personal)
    _check_personal(model, personal, shared, own)
    others = set(model.state_dict()) - {e.name for e in shared.entries}
    exchanged = all(name.endswith(_COUNTER) for name in others)
    return model, ModelFacts(choice, seed, tuple(shape), outputs, dtype, shared, frozen, positions, tuple(inputs), own, exchanged)


def _check_personal(model: nn.Module, personal: Sequence[str], shared: Layout, own: Layout) -> None:
    names = [e.name for e in (*shared.entries, *own.entries)]
    for prefix in personal:
        if not any(belongs(name, [prefix]) for name in names):
            layers = dict.fromkeys(part for name in names for part in accumulate(name.split("."), "{}.{}".format))
            raise ConfigError(
                f"algorithm.personal: no trained parameter of the model is named '{prefix}' or begins with '{prefix}.'; it has "
                f"{', '.join(names)}.{nearest(prefix, layers)}"
            )
    if own.entries and not shared.mask("shared").any():
        raise ConfigError(
            f"algorithm.personal: {', '.join(personal)} is the whole model, so the clients would exchange nothing; name only its last layers."
        )
    tensors = model.state_dict(keep_vars=True)
    both = {id(tensors[e.name]): e.name for e in shared.entries}
    for e in own.entries:
        if id(tensors[e.name]) in both:
            raise ConfigError(
                f"algorithm.personal: '{e.name}' is the same tensor as '{both[id(tensors[e.name])]}', which clients exchange; name both or none."
            )
