"""Evaluation of the global model, beside the training of the next round."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray import components
from fedray.choices import Resources
from fedray.clients.devices import device_of_actor, end_if_lost, in_actor
from fedray.clients.nodes import asks, ray_options
from fedray.clients.offspring import contain
from fedray.clients.surroundings import Kept, Surroundings, speaking, unchanged
from fedray.config import Config
from fedray.data.records import Records
from fedray.errors import FedrayError, cause_of, first_line
from fedray.models.build import evaluating
from fedray.models.facts import ModelFacts
from fedray.parameters import Vector, set_vector
from fedray.training.evaluate import evaluate, find_metrics, outputs_of
from fedray.training.losses import find_loss
from fedray.training.metrics import confusion

log = logging.getLogger(__name__)

#: Classes up to which a run writes its results by class.
MOST_CLASSES = 200


class Evaluator:
    """Holds the driver's test set and a model; an actor of its own, so that evaluation overlaps training."""

    def __init__(self, config: Config, test: Records, model: ModelFacts, provided: Mapping[str, Any]) -> None:
        self._config, self._test, self._facts, self._provided = config, test, model, provided

    @speaking()
    def ready(self) -> None:
        """Build the model; called once, first.

        Raises:
            ConfigError: its frozen parameters are others here, or a metric of the user's own fails on the test set.
        """
        if in_actor():
            contain()
        components.provide(self._provided)
        torch.set_num_threads(max(1, int(self._config.evaluation.resources.cpu)))
        self._kept: Kept = Surroundings().kept if "python:" in self._config.model_dump_json() else unchanged
        self._device = torch.device(device_of_actor())
        self._model, self._layout = self._facts.build().to(self._device), self._facts.layout
        self._loss = find_loss(self._config.training.loss)
        self._metrics = find_metrics(self._config.evaluation.metrics)
        self._x, self._y = torch.from_numpy(np.array(self._test.x)), torch.from_numpy(np.array(self._test.y))
        del self._test
        if any(name.startswith("python:") for name in self._config.evaluation.metrics):  # found out before training
            evaluate(self._model, self._x, self._y, self._metrics, self._loss, self._config.evaluation.batch_size, self._device)

    def evaluate(self, weights: Vector) -> tuple[dict[str, float], float]:
        """Metrics on the test set, and the seconds that took."""
        began = time.perf_counter()
        set_vector(self._model, self._layout, weights[: self._layout.size])  # the model comes first in what is broadcast
        size = self._config.evaluation.batch_size
        try:
            with speaking(), self._kept(None):
                values = evaluate(self._model, self._x, self._y, self._metrics, self._loss, size, self._device)
        except RuntimeError as error:
            end_if_lost(error)
            raise
        return values, time.perf_counter() - began

    def by_class(self, weights: Vector, classes: int) -> npt.NDArray[np.int64] | None:
        """Records of the test set of each class (rows) by the class that the model predicts, int64 ``[classes, classes]``.

        None where the model does not tell ``classes`` classes apart.
        """
        if self._loss.task not in (None, "classes") or self._y.ndim != 1 or self._y.is_floating_point():
            return None
        set_vector(self._model, self._layout, weights[: self._layout.size])
        with speaking(), self._kept(None), evaluating(self._model):
            outputs = outputs_of(self._model, self._x, self._config.evaluation.batch_size, self._device)
        if outputs.shape[1:] != (classes,) and not (classes == 2 and outputs.shape[1:] in ((), (1,))):
            return None
        return confusion(outputs, self._y.long(), classes).numpy()


class PendingEvaluation:
    """One evaluation under way."""

    def __init__(self, by: Evaluators, weights: Any) -> None:
        self._by, self._weights = by, weights
        self._pending = by.actor.evaluate.remote(weights)

    def ready(self) -> bool:
        """Whether :meth:`result` would return at once."""
        return bool(ray.wait([self._pending], timeout=0)[0])

    def result(self) -> dict[str, float]:
        """``eval/`` metrics and the seconds they took; where the evaluator died or cannot be reached, of another one.

        Raises:
            FedrayError: the other one failed, too, or a metric did.
        """
        for last in (False, True):
            try:
                values, seconds = ray.get(self._pending, timeout=self._by.timeout)
            except (RayActorError, GetTimeoutError) as error:
                if last:
                    raise FedrayError(f"no evaluator answers ({first_line(error)}).") from None
                self._by.replace()
                self._pending = self._by.actor.evaluate.remote(self._weights)
            except RayError as error:
                raise cause_of(error, "the evaluator failed") from None
            else:
                return {**{f"eval/{name}": value for name, value in values.items()}, "time/evaluate_s": seconds}
        raise AssertionError


class Evaluators:
    """The evaluator actor, and the next one where it dies. It stands on the driver's node, unless the config pins it.

    Args:
        config: the run.
        test: the driver's test set.
        model: without weights.
        provided: objects that the caller of :func:`fedray.run` gave.
    """

    def __init__(self, config: Config, test: Records, model: ModelFacts, provided: Mapping[str, Any]) -> None:
        self._config, self._arguments = config, (config, ray.put(test), model, provided)
        self.timeout = config.clients.start_timeout
        self.actor = self._start()
        self._up = self.actor.ready.remote()

    def begin(self, weights: Any) -> PendingEvaluation:
        """Start an evaluation of the model behind an object reference."""
        return PendingEvaluation(self, weights)

    def by_class(self, weights: Vector, classes: int) -> npt.NDArray[np.int64] | None:
        """See :meth:`Evaluator.by_class`; also None where the actor does not answer, because a run does not fail for it."""
        try:
            found: npt.NDArray[np.int64] | None = ray.get(self.actor.by_class.remote(weights, classes), timeout=self.timeout)
        except RayError as error:
            log.warning("the results by class could not be computed (%s).", first_line(error))
            return None
        return found

    def wait_ready(self) -> None:
        """Wait until the actor is up.

        Raises:
            FedrayError: it is not after ``clients.start_timeout`` seconds.
        """
        wait_up(
            self._up,
            self.timeout,
            f"evaluation.resources: the evaluator is not up after {self.timeout:g} s (clients.start_timeout); it asks for "
            f"{asks(self._config.evaluation.resources)}, and the cluster has none of that to spare: lower it, or clients.actors.",
        )

    def replace(self) -> None:
        """Start another actor."""
        ray.kill(self.actor)
        self.actor = self._start()
        self._up = self.actor.ready.remote()

    def _start(self) -> Any:
        return ray.remote(Evaluator).options(**beside_driver(self._config.evaluation.resources)).remote(*self._arguments)


def wait_up(up: Any, timeout: float, late: str) -> None:
    """Wait until an actor beside the driver is up.

    Args:
        up: what says so, a call that has been made.
        timeout: seconds.
        late: the sentence where it is not.

    Raises:
        FedrayError: it is not, or cannot work.
    """
    try:
        ray.get(up, timeout=timeout)
    except RayTaskError as error:
        raise cause_of(error) from None
    except GetTimeoutError:
        raise FedrayError(late) from None


def beside_driver(resources: Resources) -> dict[str, Any]:
    """Options of an actor that stands on the driver's node, unless the config pins it."""
    options = ray_options(resources)
    if not (resources.labels or resources.custom or resources.gpu):
        here = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=True)
    return options
