"""Losses: what training minimises, and what each asks of data and model.

A loss maps (outputs [n, ...], targets [n, ...]) to [n] and does not reduce over records, so that no engine can couple one record's
gradient to another's. A loss that is defined over a whole batch says so (``couples``) and gives one number. What a loss asks for is said by
attributes of the function, of a user's own as of those here; see :class:`Loss`. Its further parameters are arguments that a config gives. A
client's group may give others; only such arguments differ between clients, never the model.

Weights of classes multiply a record's loss, and the mean is over records, not over weights: else a record's gradient would depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedray import components
from fedray.choices import LossChoice
from fedray.errors import ConfigError
from fedray.training.classweights import BALANCED, check_weights, counted, weighted
from fedray.training.engine import LossFn
from fedray.training.metrics import Task

_FOCUS = 2.0  # gamma of the paper's main results
_BETA = 0.999  # one of the paper's four

#: Types of arguments: a weight, the weights of the classes, beta, and the classes' numbers of records.
_Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Weights = list[_Weight] | Literal["balanced"] | None
_Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
_Counts = list[Annotated[int, Field(ge=0)]] | None


@dataclass(frozen=True)
class Loss:
    """A loss and what it asks for. Called with (outputs, targets) as its function is.

    Attributes:
        function: (outputs [n, ...], targets) -> [n], one loss a record; with ``couples`` -> one number [] for the batch.
        name: as a config has it.
        outputs: numbers that a model gives for a record; None: one a class, or as ``targets`` says.
        classes: number of classes that the data must have; None: any, or none.
        targets: shape of the targets, ``"n"`` for the records first; further sizes are numbers, ``"outputs"`` for one target an output,
            ``"positions"`` where the model gives its outputs at each position of a record, or any other name for any size.
        couples: the loss is of a whole batch, which is never computed in parts, and the function returns one number, of the scale of a mean
            over records.
        task: what is learned, by which metrics are chosen; None: not known.
        own: the user's own, whose result is checked.
        by_counts: classes are weighted by the numbers of each client's own records, see :meth:`of_client`; by itself the loss is unweighted.
    """

    function: LossFn
    name: str = ""
    outputs: int | None = None
    classes: int | None = None
    targets: tuple[int | str, ...] = ("n",)
    couples: bool = False
    task: Task | None = None
    own: bool = True
    by_counts: bool = False

    def of_client(self, targets: Tensor) -> Loss:
        """The loss that a client minimises.

        Args:
            targets: of the client's training records, int64 [n], where the loss is ``by_counts``; else any.
        """
        if not self.by_counts:
            return self
        return replace(self, function=partial(self.function, counts=counted(targets)))  # type: ignore[call-arg]  # of those that take it

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every record, [n]; with ``couples`` that of the batch, [].

        Raises:
            ConfigError: the user's function returned anything else.
        """
        if not self.own:
            return self.function(outputs, targets)
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # so it is afterwards, too, whatever the function leaves
            losses = self.function(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape != (() if self.couples else (len(targets),)):
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            wanted = (
                "one number, for its attribute couples is true"
                if self.couples
                else "one loss for each (or set its attribute couples = True)"
            )
            raise ConfigError(f"training.loss: '{self.name}' returned {got} for {len(targets)} records; return {wanted}.")
        if outputs.requires_grad and not losses.requires_grad:
            raise ConfigError(
                f"training.loss: '{self.name}' returned {str(losses.dtype).removeprefix('torch.')} values without a gradient; compute them of "
                "the outputs by differentiable functions of torch, without argmax, detach or numpy."
            )
        return losses


#: What a function may say of itself.
_SAID = tuple(field.name for field in fields(Loss) if field.name not in ("function", "name", "own", "by_counts"))


def declared(**said: Any) -> Callable[[LossFn], LossFn]:
    """Sets attributes of a loss's function, see :class:`Loss`."""

    def mark(loss: LossFn) -> LossFn:
        vars(loss).update(said)
        return loss

    return mark


@declared(task="classes")
def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    weights: _Weights = None,
    beta: _Beta = _BETA,
    counts: _Counts = None,
) -> Tensor:
    """Cross-entropy of softmax over classes, with label smoothing and weights of classes: outputs [n, classes], targets int64 [n].

    Args:
        smoothing: share of the target that is spread over all classes alike (label smoothing).
        weights: of the classes, in their order; balanced: from the effective numbers of records; null = 1 each.
        beta: of the effective number (1 - beta^n) / (1 - beta) of n records; with 0 balanced weights are 1, near 1 they are as 1 / n.
        counts: public numbers of records of the classes for balanced weights; null = each client's own, not under record privacy.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, section 7 (smoothing); Cui et al. 2019,
        Class-Balanced Loss Based on Effective Number of Samples, equations 2 and 5 (balanced)
    """
    return weighted(functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing), targets, weights, beta, counts)


@declared(task="classes")
def focal(
    outputs: Tensor,
    targets: Tensor,
    gamma: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = _FOCUS,
    alpha: _Weights = None,
    beta: _Beta = _BETA,
    counts: _Counts = None,
) -> Tensor:
    """Focal loss, -alpha (1 - p)^gamma log p of the target's probability p: outputs [n, classes], targets int64 [n].

    Args:
        gamma: how much less records count that the model is sure of; 0 is cross-entropy.
        alpha: weights of the classes, in their order; balanced: from the effective numbers of records; null = 1 each.
        beta: of the effective number (1 - beta^n) / (1 - beta) of n records; with 0 balanced weights are 1, near 1 they are as 1 / n.
        counts: public numbers of records of the classes for balanced alpha; null = each client's own, not under record privacy.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equations 4 and 5; Cui et al. 2019, Class-Balanced Loss Based on
        Effective Number of Samples, equation 9 (balanced)
    """
    cross = functional.cross_entropy(outputs, targets, reduction="none")
    # At p = 1 a power below 1 has no finite slope, and the loss itself is 0 there.
    unsure = (-cross).expm1().neg() if gamma >= 1 else (-cross).expm1().neg().clamp(min=torch.finfo(cross.dtype).tiny)
    return weighted(unsure.pow(gamma) * cross, targets, alpha, beta, counts)


@declared(outputs=1, classes=2, task="classes")
def binary_cross_entropy(outputs: Tensor, targets: Tensor, positive_weight: _Weight = 1.0) -> Tensor:
    """Cross-entropy of one logit: outputs [n] or [n, 1], targets 0 or 1 [n].

    Args:
        positive_weight: factor on the loss of records of class 1; above 1 it finds more of them, with more false alarms.
    """
    logits = _one(outputs)
    factor = None if positive_weight == 1.0 else logits.new_tensor(positive_weight)
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none", pos_weight=factor)


@declared(outputs=1, task="values")
def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error: outputs [n] or [n, 1], targets [n]."""
    values = _one(outputs)
    return functional.mse_loss(values, targets.to(values.dtype), reduction="none")


@declared(outputs=1, task="values")
def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error: outputs [n] or [n, 1], targets [n]."""
    values = _one(outputs)
    return functional.l1_loss(values, targets.to(values.dtype), reduction="none")


LOSSES = {"cross_entropy": cross_entropy, "focal": focal, "binary_cross_entropy": binary_cross_entropy, "mse": mse, "mae": mae}


#: The built-in losses' arguments that are weights of classes.
_WEIGHTS = {"cross_entropy": "weights", "focal": "alpha"}


def find_loss(choice: LossChoice | str) -> Loss:
    """The loss that a config names, built in or a user's own (``python:module:attribute``), with its arguments.

    Raises:
        ConfigError: no such loss, not a function, its attributes are none that a loss can have, or its arguments are none that it takes.
    """
    name, given = (choice, {}) if isinstance(choice, str) else (choice.kind, choice.arguments)
    found = components.find_callable(components.LOSSES, name)
    said = {key: getattr(found, key) for key in _SAID if hasattr(found, key)}
    if components.is_own(name):
        said = _checked(name, said)
    bound = components.configured(components.LOSSES, name, given)
    arguments, key, by_counts = bound.keywords, _WEIGHTS.get(name), of_own_counts(choice)
    if key is not None:
        classes = check_weights(f"training.loss.{key}", arguments.get(key), list(given), arguments.get("counts"))
        said |= {} if classes is None else {"classes": classes}
    return Loss(bound if given else found, name, **said, own=components.is_own(name), by_counts=by_counts)


def of_own_counts(choice: LossChoice | str) -> bool:
    """Whether a loss weights classes by the numbers of each client's own records, which no config declares."""
    if isinstance(choice, str) or choice.kind not in _WEIGHTS:
        return False
    arguments = choice.arguments
    return arguments.get(_WEIGHTS[choice.kind]) == BALANCED and arguments.get("counts") is None


def known_apart(loss: LossFn) -> bool:
    """Whether a loss is a built-in one, of which it is known that it keeps records apart."""
    function = loss.function if isinstance(loss, Loss) else loss
    while isinstance(function, partial):
        function = function.func
    return not getattr(function, "couples", False) and any(function is known for known in components.LOSSES.parts().values())


def outputs_for(choice: LossChoice | str, classes: int | None, target_shape: tuple[int, ...] = ()) -> int:
    """How many outputs a model needs for each record.

    Args:
        choice: the config's ``training.loss``.
        classes: number of classes of the data; None where the targets are real numbers.
        target_shape: of one record's targets; () where it is one number.

    Raises:
        ConfigError: the loss does not suit the data.
    """
    loss = find_loss(choice)
    sizes = _named_sizes(loss, target_shape)
    if loss.classes is not None and classes != loss.classes:
        found = "real-valued targets" if classes is None else f"{classes} classes"
        if loss.name in _WEIGHTS and classes is not None:
            raise ConfigError(f"training.loss: has numbers for {loss.classes} classes, but the data has {found}; give {classes} numbers.")
        better = "mse" if classes is None else "cross_entropy"
        raise ConfigError(f"training.loss: {loss.name} needs {loss.classes} classes, but the data has {found}; use {better}.")
    outputs = loss.outputs if loss.outputs is not None else sizes.get("outputs", classes)
    if outputs is None:
        raise ConfigError(
            f"training.loss: {loss.name} needs classes, but the data has real-valued targets; use mse, or set your loss's `outputs`."
        )
    return int(outputs)


def positions_for(choice: LossChoice | str, target_shape: tuple[int, ...]) -> int | None:
    """At how many positions of a record a model gives its outputs; None where it gives them once for each record."""
    return _named_sizes(find_loss(choice), target_shape).get("positions")


def _named_sizes(loss: Loss, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that a loss's ``targets`` names, of the data's targets."""
    wanted = loss.targets[1:]
    if len(shape) == len(wanted) and all(isinstance(w, str) or w == size for w, size in zip(wanted, shape, strict=True)):
        return {w: size for w, size in zip(wanted, shape, strict=True) if isinstance(w, str)}
    takes, has = _written(("n", *wanted)), _written(("n", *shape))
    if loss.own:
        way = f"set your loss's attribute targets = {('n', *shape)!r}, or change the data"
    elif not wanted:
        way = "name one column with data.label, take the class of one-hot labels, or use a loss of several targets (bce, cox)"
    elif not shape:
        way = "name the columns with data.label=[A, B], or use a loss of one target"
    else:
        way = "use another loss, or change data.label"
    raise ConfigError(f"training.loss: {loss.name} takes targets {takes}, but those of the data are {has}; {way}.")


def _written(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _checked(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """What a loss of the user's own says of itself, if all of it is what a loss can say."""
    wanted: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "outputs": ("a whole number above 0, or None", lambda v: v is None or _whole(v, 1)),
        "classes": ("a whole number above 1, or None", lambda v: v is None or _whole(v, 2)),
        "targets": ("a tuple such as ('n', 2), which begins with 'n'", _is_shape),
        "couples": ("True or False", lambda v: isinstance(v, bool)),
        "task": (f"one of {', '.join(map(repr, get_args(Task)))}, or None", lambda v: v is None or v in get_args(Task)),
    }
    for key, value in said.items():
        what, fits = wanted[key]
        if not fits(value):
            raise ConfigError(f"training.loss: '{name}' has {key} = {value!r}; give {what}.")
    return said | ({"targets": tuple(said["targets"])} if "targets" in said else {})


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and value[0] == "n" and all(isinstance(v, str) or _whole(v, 1) for v in value)


def _one(outputs: Tensor) -> Tensor:
    """[n] of [n] or [n, 1]."""
    return outputs.squeeze(-1) if outputs.ndim == 2 else outputs
