"""Newton's method for linear models.

Source: Boyd, Vandenberghe 2004, Convex Optimization, section 9.5, with the full step; the damping is Levenberg's (1944).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fedray.algorithms.algorithm import Algorithm, Mean, Update
from fedray.algorithms.derivatives import DERIVATIVES, Derivatives, Targets
from fedray.algorithms.totals import DIGITS, RecordTotals, totals_of
from fedray.algorithms.turn import Turn
from fedray.config import Training
from fedray.errors import ConfigError, FedrayError
from fedray.exchange import Exchange, Field
from fedray.models.build import evaluating
from fedray.parameters import Layout, Vector, set_vector
from fedray.traits import Traits

_BLOCK = 1024  # records at a time


@dataclass(frozen=True)
class Newton(Algorithm):
    """Newton's method for linear, logistic or softmax regression: clients send gradients and Hessians, and the server solves for the step.

    Each client sends the gradient g and the Hessian H of its summed loss at the global model; the server adds them up and steps by
    -(H + damping I)^-1 g, where the identity is added once to the sum over all clients, and so is what the penalty ``l2 / 2 * |w|^2`` adds to
    g and H. The sums are exact, so any split of the same records among clients gives the same model, bit by bit. A turn is computed in
    float64 on the CPU.

    Source: Boyd, Vandenberghe 2004, Convex Optimization, section 9.5, with the full step; Levenberg 1944 for the damping.

    Attributes:
        damping: of the Hessian, 0 or above; with 0 the step is Newton's own, and the Hessian must not be singular.
        l2: of the penalty on all weights but the biases, 0 or above.
        traits: clients read their records and send exact totals over them.
    """

    damping: float = 1.0
    l2: float = 0.0
    traits: ClassVar[Traits] = Traits(reads=frozenset({"records"}), passes=0, exact=True)

    def __post_init__(self) -> None:
        for name, value in (("damping", self.damping), ("l2", self.l2)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"algorithm.{name}: {value} is not 0 or above.")

    def check(self, training: Training) -> None:
        """The loss is that of linear, logistic or softmax regression."""
        if training.loss.kind not in DERIVATIVES or training.loss.arguments:
            given = f"{training.loss} with {', '.join(training.loss.arguments)}" if training.loss.arguments else str(training.loss)
            raise ConfigError(
                f"training.loss: newton knows the Hessian of {', '.join(DERIVATIVES)}, and not that of {given}; use one of these "
                "without arguments, or algorithm.kind: fedavg."
            )

    def exchange(self, layout: Layout) -> Exchange:
        """The gradient, and the upper triangle of the Hessian, row by row; both as digits.

        Raises:
            ConfigError: the model is more than one linear layer.
        """
        shapes, size = [e.shape for e in layout.entries], layout.size
        if not shapes or len(shapes[0]) != 2 or shapes[1:] not in ([], [shapes[0][:1]]) or any(e.kind != "shared" for e in layout.entries):
            raise _not_linear()
        return Exchange(
            (
                Field("model", size, up=False),
                *([Field("penalties", size, up=False)] if self.l2 else []),
                Field("gradient", DIGITS * size, down=False, weigh="one"),
                Field("hessian", DIGITS * (size * (size + 1) // 2), down=False, weigh="one"),
            )
        )

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model, and where there is one, the penalty of each of its weights."""
        penalties = np.zeros(layout.size, dtype=np.float32)
        penalties[: layout.entries[0].size] = self.l2
        return {"model": weights} | ({"penalties": penalties} if self.l2 else {})

    def local(self, turn: Turn) -> Update:
        """The exact sums over the client's records of each record's gradient and Hessian."""
        x, y = (rows.detach().cpu() for rows in turn.rows())
        _check_linear(turn, x[:_BLOCK])
        features, targets, size = x.flatten(1).numpy(), y.numpy(), turn.layout.size
        totals, derivatives = RecordTotals(size + size * (size + 1) // 2), DERIVATIVES[turn.training.loss.kind]
        for start in range(0, len(targets), _BLOCK):
            block = slice(start, start + _BLOCK)
            _add_block(totals, turn.layout, turn.globals["model"], features[block], targets[block], derivatives)
        return Update({"gradient": totals.digits(0, size), "hessian": totals.digits(size, len(totals.values))})

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """The step of the damped Newton's method.

        Raises:
            FedrayError: the Hessian is singular.
        """
        size = len(globals_["model"])
        gradient, hessian = totals_of(mean.values["gradient"], mean.clients), np.zeros((size, size))
        hessian[np.triu_indices(size)] = totals_of(mean.values["hessian"], mean.clients)
        hessian += np.triu(hessian, 1).T
        kept = {"penalties": globals_["penalties"]} if self.l2 else {}
        for penalties in kept.values():
            gradient += penalties.astype(np.float64) * globals_["model"]
            hessian += np.diag(penalties.astype(np.float64))
        try:
            step = np.linalg.solve(hessian + self.damping * np.eye(size), -gradient)
        except np.linalg.LinAlgError:
            raise FedrayError("algorithm.damping: the Hessian of all clients' records is singular; set the damping above 0.") from None
        return {"model": step.astype(np.float32)} | kept


def _add_block(
    totals: RecordTotals,
    layout: Layout,
    weights: Vector,
    features: npt.NDArray[np.float32],
    targets: Targets,
    derivatives: Derivatives,
) -> None:
    """Add the gradients and Hessians of some records.

    Every number of a record is computed from that record alone by operations on single numbers, in an order that does not depend on which
    records stand beside it; a product of matrices would give its last bits by the number of its rows.
    """
    outputs, width = layout.entries[0].shape
    biased, n = len(layout.entries) > 1, len(targets)
    x = np.ones((width + 1, n))  # [features and a constant, records]
    x[:width] = features.T
    w = weights.astype(np.float64)
    logits = np.zeros((outputs, n))
    if biased:
        logits += w[outputs * width :, None]
    for feature, column in zip(x[:width], w[: outputs * width].reshape(outputs, width).T, strict=True):
        logits += column[:, None] * feature
    residual, curvature = derivatives(logits, targets)
    # Of each weight in the model's vector, its output and its feature; the bias belongs to the constant.
    output, feature_of = (index.ravel() for index in np.indices((outputs, width)))
    if biased:
        output, feature_of = np.append(output, np.arange(outputs)), np.append(feature_of, np.full(outputs, width))
    size, start = layout.size, layout.size
    totals.add(0, residual[output] * x[feature_of])
    for row in range(size):
        scaled = curvature[output[row]] * x[feature_of[row]]  # [outputs, records]
        totals.add(start, scaled[output[row:]] * x[feature_of[row:]])
        start += size - row


def _check_linear(turn: Turn, x: torch.Tensor) -> None:
    """Refuse a model whose outputs are not those of the one linear layer that its weights look like.

    Raises:
        ConfigError: they are not.
    """
    weight, *bias = turn.tensors(turn.globals["model"]).values()
    if x.is_floating_point() and x[0].numel() == weight.shape[1]:
        x = x.to(weight.device)
        set_vector(turn.model, turn.layout, turn.globals["model"])
        with evaluating(turn.model):
            found, expected = turn.model(x), torch.nn.functional.linear(x.flatten(1), weight, *bias)
        if found.numel() == expected.numel() and torch.allclose(found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-3):
            return
    raise _not_linear()


def _not_linear() -> ConfigError:
    return ConfigError(
        "model.kind: newton is for a model that is one linear layer of the features; use linear, logistic or softmax, or algorithm.kind: fedavg."
    )


ALGORITHMS = {"newton": Newton}
