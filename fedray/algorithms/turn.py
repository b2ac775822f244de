"""One client's turn, as an algorithm sees it.

Records, randomness, noise, and how a batch fits into memory stay with the trainer: an algorithm asks for training, and for what its
traits declare, and says what leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import FedrayError
from fedray.parameters import Layout, Vector, get_vector, set_vector, update_blocks
from fedray.training.engine import Compose, ExtraLoss, LocalResult

#: Name of the personal layers in what a client keeps.
PERSONAL = "personal"

#: Called after the gradients of a step are final (under record privacy: after the noise) and before the optimiser moves the model.
Adjust = Callable[[nn.Module], None]


class Hooks(NamedTuple):
    """How an algorithm takes part in a training, see :meth:`Turn.train`; the names are those of a job's fields."""

    adjust: Adjust | None = None
    compose: Compose | None = None
    extra: ExtraLoss | None = None


#: Trains the turn's model in place: (name of the stream of randomness that orders the batches, hooks).
Train = Callable[[str, Hooks], LocalResult]


@dataclass(frozen=True)
class Moved:
    """How far a model has moved, computed when it is asked for.

    Attributes:
        vector: gives it whole, float32 ``[layout.size]``, a new array.
        blocks: gives (position, at most so many values); a block lasts until the next is asked for.
    """

    vector: Callable[[], Vector]
    blocks: Callable[[int], Iterator[tuple[int, Vector]]]

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, start: Vector) -> Moved:
        """How far ``model`` is from ``start``, float32 ``[layout.size]``."""

        def vector() -> Vector:
            found = get_vector(model, layout)
            found -= start
            return found

        return cls(vector, partial(update_blocks, model, layout, start))

    @classmethod
    def ready(cls, vector: Vector) -> Moved:
        """One that is known already."""
        return cls(lambda: vector, lambda size: ((at, vector[at : at + size]) for at in range(0, len(vector), size)))


class Personal(NamedTuple):
    """The layers of a model that stay with one client.

    Attributes:
        layout: of them.
        values: float32 ``[layout.size]``.
    """

    layout: Layout
    values: Vector


class ClientView:
    """What an algorithm knows of a client, in its turn and where it says which model is evaluated on the client's records.

    Attributes:
        client: index of the client.
        records: number of its training records.
        globals: the fields that were broadcast, by name, float32; not to be changed.
        state: what the client kept from its last turn that counted, by name; None if there was none.
        model: that is trained or evaluated.
        layout: of the model's exchanged parameters.
        personal: the client's own layers, as its last turn that counted or a training since has left them; None where there are none.
    """

    def __init__(
        self,
        client: int,
        records: int,
        globals_: Mapping[str, Vector],
        model: nn.Module,
        layout: Layout,
        loss: Callable[[], float] | None = None,
        state: Mapping[str, Vector] | None = None,
        rows: Callable[[], tuple[Tensor, Tensor]] | None = None,
        personal: Personal | None = None,
        gradient: Callable[[], Vector] | None = None,
    ) -> None:
        self.client, self.records, self.globals, self.state = client, records, globals_, state
        self.model, self.layout, self.personal, self._loss, self._rows, self._gradient = model, layout, personal, loss, rows, gradient

    def put(self, vector: Vector) -> None:
        """Set the model to a vector, float32 ``[layout.size]``, and to the client's own layers."""
        set_vector(self.model, self.layout, vector)
        if self.personal is not None:
            set_vector(self.model, *self.personal)

    def loss(self, at: Vector | None = None) -> float:
        """Mean loss over the client's training records; for algorithms whose traits read ``loss``.

        Args:
            at: of which vector, float32 ``[layout.size]``; None is the global model.

        Raises:
            FedrayError: the algorithm does not declare it.
        """
        if self._loss is None:
            raise FedrayError("algorithm.kind: it asks for a client's loss, which its traits do not declare; add reads={'loss'}.")
        self.put(self.globals["model"] if at is None else at)
        return self._loss()

    def gradient(self, at: Vector) -> Vector:
        """Gradient of the mean loss over the client's training records, float32 ``[layout.size]``; in evaluation mode, and zero for buffers. For
        algorithms whose traits say that measured models are ``adapted``.

        Args:
            at: at which vector, float32 ``[layout.size]``.

        Raises:
            FedrayError: the algorithm does not declare it.
        """
        if self._gradient is None:
            raise FedrayError("algorithm.kind: it asks for a client's gradient, which its traits do not declare; add adapted=True.")
        self.put(at)
        return self._gradient()

    def rows(self) -> tuple[Tensor, Tensor]:
        """The client's training records: x ``[n, ...]`` and y ``[n, ...]``, on the model's device; not to be changed. For algorithms
        whose traits read ``records``.

        Raises:
            FedrayError: the algorithm does not declare it.
        """
        if self._rows is None:
            raise FedrayError("algorithm.kind: it asks for a client's records, which its traits do not declare; add reads={'records'}.")
        return self._rows()


class Turn(ClientView):
    """What an algorithm's ``local`` is given: the client, and its training. ``model`` holds the vector of the last training, and
    ``composed`` says whether any has made gradients in its own way.

    Args:
        number: of the round, from 0.
        lr: learning rate of this round.
        training: the training section, with the client's group's own settings.
        train: trains the model in place.
        view: as :class:`ClientView` takes it.
    """

    def __init__(self, number: int, lr: float, training: Training, train: Train, *view: Any, **more: Any) -> None:
        super().__init__(*view, **more)
        self.number, self.lr, self.training, self._train = number, lr, training, train
        self._start: Vector = self.globals["model"]
        self.composed = False
        self.results: list[LocalResult] = []

    def train(
        self,
        *,
        start: Vector | None = None,
        adjust: Adjust | None = None,
        stream: str = "batches",
        compose: Compose | None = None,
        extra: ExtraLoss | None = None,
    ) -> LocalResult:
        """Train the model on the client's records with the run's engine; its personal layers go on from where they are.

        Args:
            start: from which vector, float32 ``[layout.size]``; None is the global model.
            adjust: changes the gradients of each step (``p.grad``), which already carry the noise where records are protected.
            stream: name of the stream of randomness that orders the batches; two trainings with one name see the same batches.
            compose: makes each step's gradient of several, at points and batches of its choice; for algorithms whose traits have ``composed``
                gradients. Called with the model and what sets ``p.grad`` to the gradient at the parameters as they are, over the step's own
                batch or over that of a named stream.
            extra: gives what is added to the losses of records, ``[n, ...]`` to ``[n]``, after the model's forward pass on these; for algorithms
                whose traits have ``composed`` gradients.
        """
        self._start = self.globals["model"] if start is None else start
        self.put(self._start)
        self.composed |= compose is not None or extra is not None
        result = self._train(stream, Hooks(adjust, compose, extra))
        if self.personal is not None:
            self.personal = self.personal._replace(values=get_vector(self.model, self.personal.layout))
        self.results.append(result)
        return result

    def moved(self) -> Moved:
        """How far the last training moved the model from where it started."""
        return Moved.of(self.model, self.layout, self._start)

    def vector(self) -> Vector:
        """The model as it is now, float32 ``[layout.size]``, a copy."""
        return get_vector(self.model, self.layout)

    def tensors(self, vector: Vector) -> dict[str, Tensor]:
        """A vector of the model's layout as tensors on the model's device, by parameter name; not to be changed."""
        device = next(self.model.parameters()).device
        return {name: torch.from_numpy(view).to(device) for name, view in self.layout.views(vector.copy()).items()}

    def in_all(self, history: list[tuple[float, float, int]] | None) -> LocalResult:
        """All trainings of the turn as one; ``history`` is what its charge has counted."""
        results = self.results
        if len(results) == 1:
            return replace(results[0], history=history)
        examples = sum(r.examples for r in results)
        known = [r.loss * r.examples for r in results if r.loss is not None]
        loss = sum(known) / examples if examples and len(known) == len(results) else None
        return LocalResult(sum(r.steps for r in results), examples, loss, history)


class TrainedTurn(Turn):
    """A turn whose training was done beforehand, together with that of other clients.

    Args:
        turn: as :class:`Turn` takes it.
        update: how far the model has moved, float32 ``[layout.size]``.
    """

    def __init__(self, update: Vector, *turn: Any, **more: Any) -> None:
        super().__init__(*turn, **more)
        self._update = update

    def train(
        self,
        *,
        start: Vector | None = None,
        adjust: Adjust | None = None,
        stream: str = "batches",
        compose: Compose | None = None,
        extra: ExtraLoss | None = None,
    ) -> LocalResult:
        """The result of the training that was done.

        Raises:
            FedrayError: another training than once from the global model was asked for.
        """
        if start is not None or Hooks(adjust, compose, extra) != Hooks() or self.results:
            raise FedrayError(
                "algorithm.kind: it changes local training, or trains twice, which its traits do not declare; set gradients='adjusted'."
            )
        self.results.append(self._train(stream, Hooks()))
        return self.results[0]

    def moved(self) -> Moved:
        """How far the training moved the model from the global one."""
        return Moved.ready(self._update)

    def vector(self) -> Vector:
        """The trained model, float32 ``[layout.size]``, a copy."""
        return self.globals["model"] + self._update
