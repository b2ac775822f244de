"""fedray: a training cluster for federated learning with differential privacy, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fedray.experiment import Result as Result
    from fedray.experiment import run as run

__all__ = ["Result", "__version__", "run"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `fedray list` or a worker process does not pay for Ray and torch.
    if name in ("run", "Result"):
        from fedray import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module 'fedray' has no attribute '{name}'")
