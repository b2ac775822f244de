"""From the config's ``model`` section to an initialised and checked model."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedray import components, rng
from fedray.choices import Choice, ModelChoice
from fedray.errors import ConfigError, blaming, raised
from fedray.inputs import Input, described
from fedray.models.adapters import check_adapted
from fedray.models.keywords import Keywords
from fedray.models.weights import load_weights


def build_model(
    part: ModelChoice,
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    positions: int | None = None,
    inputs: Sequence[Input] = (),
) -> nn.Module:
    """The model of the config on the CPU, in training mode as its factory left it.

    A factory, built in or ``python:module:attribute``, may take ``input_shape`` (one record's shape) and
    ``outputs`` by name and the section's other keys as arguments. It runs under random generators
    seeded from (seed, "model"), so the same config gives the same bytes in every process; the global
    generators are left as they were. Then the weights of ``model.weights`` are read into it (unless the factory itself takes an
    argument of that name) and the adapters of ``model.adapters`` put on it.

    Args:
        part: the ``model`` section.
        input_shape: shape of one record.
        outputs: number of outputs for a record, see :func:`fedray.training.losses.outputs_for`.
        seed: the run's seed.
        dtype: of the records, float32 or int64 (tokens).
        positions: how many outputs are needed along a record; None: one set of outputs for each record.
        inputs: the inputs that stand side by side in a record; the factory then gets a dict of their shapes as ``input_shape``, and its
            model a tensor for each as a keyword argument.

    Raises:
        ConfigError: unknown model, wrong arguments, or a model that does not fit the data.
    """
    with _seeded(rng.torch_seed(seed, "model")):
        model = _made(part, input_shape, outputs, inputs)
        _check_outputs(model, part.kind, torch.zeros((2, *input_shape), dtype=dtype), outputs, positions, inputs)
    _check_parameters(model, part.kind)
    return model


def untried_model(
    part: ModelChoice,
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    positions: int | None = None,
    inputs: Sequence[Input] = (),
) -> nn.Module:
    """:func:`build_model`'s model before it has been run for the first time, wherever it does not need that to have its parameters."""
    with _seeded(rng.torch_seed(seed, "model")):
        model = _made(part, input_shape, outputs, inputs)
    return build_model(part, input_shape, outputs, seed, dtype, positions, inputs) if _lazy(model) else model


def _made(part: ModelChoice, input_shape: tuple[int, ...], outputs: int, inputs: Sequence[Input]) -> nn.Module:
    factory = components.find(components.MODELS, part.kind)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigError(f"model.kind: '{part.kind}' is a {type(factory).__name__}; name a function or class that makes the model.")
    arguments = factory_arguments(factory, part)
    shape = {i.name: i.shape for i in inputs} if inputs else tuple(input_shape)
    offered = {"input_shape": shape, "outputs": outputs}
    taken = inspect.signature(factory).parameters
    with blaming(f"model.kind: making '{part.kind}'"):
        model = factory(**{name: value for name, value in offered.items() if name in taken}, **arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.kind: '{part.kind}' made a {type(model).__name__}; it should return a torch.nn.Module.")
    model = _prepared(model, part, None if _takes_weights(factory) else part.weights)
    return Keywords(model, inputs) if inputs else model


def _prepared(model: nn.Module, part: ModelChoice, weights: str | None) -> nn.Module:
    """The factory's model with the weights and the adapters of the config."""
    if weights is None and part.adapters is None:
        return model
    if _lazy(model):
        raise ConfigError(
            f"model.kind: '{part.kind}' has lazy layers, which have no parameters before the first batch; give their sizes, which "
            "model.weights and model.adapters need."
        )
    if weights is not None:
        load_weights(model, weights)
    if part.adapters is None:
        return model
    kind = part.adapters.kind
    with blaming(f"model.adapters.kind: putting '{kind}' on the model"):
        adapted = adapter(part.adapters)(model)
    if not isinstance(adapted, nn.Module):
        raise ConfigError(
            f"model.adapters.kind: '{kind}' returned a {type(adapted).__name__}; it should return the model, a torch.nn.Module, with the adapters."
        )
    if not any(p.requires_grad for p in adapted.parameters()):
        raise ConfigError(
            f"model.adapters.kind: '{kind}' leaves nothing to train; set requires_grad of the parameters that it adds or chooses."
        )
    check_adapted(adapted, part.kind)
    return adapted


def adapter(part: Choice) -> Callable[..., Any]:
    """The adapter that a config names with its arguments, a function of a model.

    Raises:
        ConfigError: it is not known, or its arguments do not fit.
    """
    return components.configured(components.ADAPTERS, part.kind, part.arguments)


def factory_arguments(factory: Callable[..., Any], part: ModelChoice) -> dict[str, Any]:
    """A model's section as the arguments of its factory.

    Raises:
        ConfigError: they do not fit.
    """
    given = part.arguments
    if part.weights is not None and _takes_weights(factory):
        given["weights"] = part.weights
    return components.check_arguments(factory, given, "model", own=components.MODELS.own)


def without_weights(part: ModelChoice) -> ModelChoice:
    """The section without weights to read, for a model that gets all of its tensors from elsewhere; the weights may be gone, or far away."""
    return part if reads_weights(part) else part.model_copy(update={"weights": None})


def reads_weights(part: ModelChoice) -> bool:
    """Whether the factory reads ``model.weights`` itself, as an argument of that name.

    Raises:
        ConfigError: the factory is not known.
    """
    return _takes_weights(components.find(components.MODELS, part.kind))


def _takes_weights(factory: Callable[..., Any]) -> bool:
    return "weights" in inspect.signature(factory).parameters


def _lazy(model: nn.Module) -> bool:
    return any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's, NumPy's and Python's global CPU generators seeded, and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the GPUs' generators.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _check_outputs(model: nn.Module, kind: str, records: Tensor, outputs: int, positions: int | None, inputs: Sequence[Input]) -> None:
    try:
        with evaluating(model):
            result = model(records)
    except Exception as error:
        if inputs:
            raise ConfigError(
                f"model.kind: '{kind}' failed on records with the inputs {described(inputs)} with {raised(error)}; its forward should take a "
                "tensor for each as a keyword argument."
            ) from error
        raise ConfigError(
            f"model.kind: '{kind}' failed on a batch of {str(records.dtype).removeprefix('torch.')} records of shape "
            f"{tuple(records.shape[1:])} with {raised(error)}; choose a model for records of that shape"
            + (", or give measurements as floats, for integers are taken for tokens." if records.dtype == torch.int64 else ".")
        ) from error
    if not isinstance(result, Tensor):
        raise ConfigError(f"model.kind: '{kind}' returns a {type(result).__name__} from forward; it should return one tensor of outputs.")
    if not result.is_floating_point():
        raise ConfigError(f"model.kind: '{kind}' gives outputs of {result.dtype}; it should give floats, which training can change.")
    allowed: list[tuple[int, ...]] = [(2,), (2, 1)] if outputs == 1 else [(2, outputs)]
    if positions is not None:  # at the last position nothing may follow
        allowed = [(2, positions, outputs), (2, positions + 1, outputs)]
    if tuple(result.shape) not in allowed:
        wanted = "the loss needs one output a record" if outputs == 1 else f"the data has {outputs} classes"
        if positions is not None:
            wanted = f"the loss needs outputs of shape {allowed[0]}, {outputs} at each of a record's {positions} targets"
        raise ConfigError(f"model.kind: '{kind}' gives outputs of shape {tuple(result.shape)} for 2 records, but {wanted}.")


def _check_parameters(model: nn.Module, kind: str) -> None:
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(f"model.kind: '{kind}' has no trainable parameters; nothing could be learnt.")
    for name, parameter in trainable:
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"model.kind: parameter {name} of '{kind}' is {parameter.dtype}; weights are exchanged as float32, make it so."
            )
