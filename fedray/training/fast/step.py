"""What the engine ``plain`` does to make a step faster on a CPU, behind one context.

Each part is a module of this package: the order of a pixel's channels in memory, layers of a chain in a cheaper order, oneDNN's products,
gradients that are subtracted as they are made, and, where the user asks for it, sixteen bits. All but the last compute what
torch computes by itself, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from fedray.config import Training
from fedray.training.fast.channels_last import channels_last, lay_out, turned_gradients
from fedray.training.fast.direct import Direct
from fedray.training.fast.mixed import convolutions_in, forward_in
from fedray.training.fast.sequential import forward_of, layers_of


@dataclass(frozen=True)
class FastStep:
    """Forward and backward pass of a model in training.

    Attributes:
        parameters: the trained parameters whose gradients :meth:`backward` leaves for the optimiser; it moves the others itself.
    """

    parameters: list[nn.Parameter]
    _direct: Direct
    _forward: Callable[[Tensor], Tensor]
    _turned: bool

    def outputs(self, records: Tensor) -> Tensor:
        """The model's outputs for records [n, ...]."""
        return self._direct.forward(self._forward, channels_last(records) if self._turned else records)

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add the gradient of the sum of ``losses`` times ``weights`` to that of :attr:`parameters`, and move the other parameters by theirs."""
        self._direct.backward(losses, weights)


@contextmanager
def fast_step(model: nn.Module, x: Tensor, training: Training, lr: float, one_pass: bool) -> Iterator[FastStep]:
    """The fastest passes that a model allows; afterwards it has its own layers again, and all of its steps are in its weights.

    Args:
        model: trained in place, on the device of ``x``.
        x: records [n, ...].
        training: the training section.
        lr: learning rate of the turn.
        one_pass: a step is one backward pass, and nobody but the optimiser reads its gradients.
    """
    turned, layers = lay_out(model, x), layers_of(model)
    forward = forward_of(model, layers)
    inner = forward_in(training.precision, forward)
    own = one_pass and inner is forward  # a Linear layer that moves by itself computes in float32
    with (
        Direct(model, training, lr, own, layers is not None) as direct,
        turned_gradients(model, turned),
        convolutions_in(training.precision, model),
    ):
        yield FastStep(direct.others, direct, inner, turned)
