"""Evaluation of the global model, beside the training of the next round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch

from fedray import components
from fedray.clients.host import device_of_actor
from fedray.clients.messages import LocalEvaluation
from fedray.config import Config
from fedray.data.records import Records
from fedray.models.build import build_model
from fedray.parameters import Layout, Vector, set_vector
from fedray.training.evaluate import evaluate, find_metrics
from fedray.training.losses import find_loss


class Evaluator:
    """Holds the driver's test set and a model; an actor of its own, so that evaluation overlaps training."""

    def __init__(self, config: Config, test: Records, outputs: int, provided: Mapping[str, Any]) -> None:
        self._config, self._test, self._outputs, self._provided = config, test, outputs, provided

    def ready(self) -> None:
        """Build the model; called once, first."""
        components.provide(self._provided)
        torch.set_num_threads(max(1, int(self._config.evaluation.resources.cpu)))
        self._device = torch.device(device_of_actor())
        shape = tuple(int(n) for n in self._test.x.shape[1:])
        dtype = torch.int64 if self._test.x.dtype.kind == "i" else torch.float32
        self._model = build_model(self._config.model, shape, self._outputs, self._config.seed, dtype).to(self._device)
        self._layout = Layout.of(self._model)
        self._loss = find_loss(self._config.training.loss)
        self._metrics = find_metrics(self._config.evaluation.metrics)
        self._x, self._y = torch.from_numpy(np.array(self._test.x)), torch.from_numpy(np.array(self._test.y))
        del self._test

    def evaluate(self, weights: Vector) -> tuple[dict[str, float], float]:
        """Metrics on the test set, and the seconds that took."""
        began = time.perf_counter()
        set_vector(self._model, self._layout, weights)
        size = self._config.evaluation.batch_size
        values = evaluate(self._model, self._x, self._y, self._metrics, self._loss, size, self._device)
        return values, time.perf_counter() - began


def start_evaluator(config: Config, test: Records, outputs: int, provided: Mapping[str, Any]) -> Any:
    """Start the evaluator actor; it is restarted by Ray when it dies (it holds no state that matters)."""
    r = config.evaluation.resources
    actor = ray.remote(Evaluator).options(num_cpus=r.cpu, num_gpus=r.gpu, resources=r.custom or None)
    return actor.remote(config, test, outputs, provided)


def summarize(rows: Sequence[LocalEvaluation], central: bool) -> dict[str, float]:
    """Federated evaluation in figures.

    ``fairness/M_mean|worst|p10|std`` over clients with equal weight; without a central test set also
    ``eval/M``, the mean over records.
    """
    if not rows:
        return {}
    records = np.array([r.records for r in rows], dtype=np.float64)
    figures = {}
    for name in rows[0].metrics:
        values = np.array([r.metrics[name] for r in rows])
        lower_is_better = name in ("loss", "mae", "rmse", "mse")
        figures[f"fairness/{name}_mean"] = float(values.mean())
        figures[f"fairness/{name}_worst"] = float(values.max() if lower_is_better else values.min())
        figures[f"fairness/{name}_p10"] = float(np.quantile(values, 0.9 if lower_is_better else 0.1))
        figures[f"fairness/{name}_std"] = float(values.std())
        if not central:
            figures[f"eval/{name}"] = float(values @ records / records.sum())
    return figures
