"""Figures of a metric over a run's clients: how they are named, and the distribution that they tell."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

#: Of which model the figures are, by the first part of their names; the first is that of metrics without such a part.
MODELS = {
    "fairness": "the model by which a client predicts",
    "global": "the global model",
    "fine_tuned": "the global model, fine-tuned at each client",
}
#: How the names of all figures over clients begin.
FRONTS = tuple(f"{model}/" for model in MODELS)
#: The last part of the names of quantiles, each with the share of clients that are no better.
QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75}
#: The last parts of all names, in order.
FIGURES = ("mean", "worst", *QUANTILES, "std")


def front_of(name: str) -> str:
    """The figures' names up to their last part, for a metric that a client measured, such as ``accuracy`` or ``global/accuracy``."""
    return name if "/" in name else f"{next(iter(MODELS))}/{name}"


def distribution(values: npt.NDArray[np.float64], lower: bool) -> dict[str, float]:
    """Figures over clients with equal weight, by name; a quantile counts from the worst client on.

    Args:
        values: one a client, float64 ``[clients]``, not empty.
        lower: less is better.
    """
    quantiles = {name: float(np.quantile(values, 1 - share if lower else share)) for name, share in QUANTILES.items()}
    return {"mean": float(values.mean()), "worst": float(values.max() if lower else values.min()), **quantiles, "std": float(values.std())}


def models_of(metrics: Iterable[str], metric: str) -> list[str]:
    """The models, see :data:`MODELS`, of which ``metrics`` has figures of ``metric`` over clients."""
    known = set(metrics)
    return [model for model in MODELS if f"{model}/{metric}_mean" in known]


def metrics_of(figures: Iterable[str]) -> list[str]:
    """The metrics of which there are figures over clients, in order."""
    means = [name.removesuffix("_mean").partition("/")[2] for name in figures if name.startswith(FRONTS) and name.endswith("_mean")]
    return list(dict.fromkeys(means))
