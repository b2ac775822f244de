"""A server optimiser of the user's own, each result of which is checked before it becomes the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import ConfigError, blaming
from fedray.parameters import Vector, read_only


@dataclass(frozen=True)
class OwnServer:
    """A server optimiser of the user's own.

    Attributes:
        made: has ``init(size)`` and ``step(weights, delta, state)``.
        kind: the config's ``server.kind``.
    """

    made: Any
    kind: str

    def rehearse(self, weights: Vector) -> None:
        """Try a step with a small mean, before anything is trained.

        Args:
            weights: float32 ``[size]``; left as they are.

        Raises:
            ConfigError: as :meth:`init` and :meth:`step`.
        """
        self.step(weights, np.full_like(weights, 1e-3), self.init(len(weights)))

    def init(self, size: int) -> dict[str, Vector]:
        """State before the first round.

        Raises:
            ConfigError: it fails, or gives anything but named float32 arrays.
        """
        with blaming(f"server.kind: init({size}) of '{self.kind}'"):
            state = self.made.init(size)
        return self._state("init", state)

    def step(self, weights: Vector, delta: Vector, state: dict[str, Vector]) -> tuple[Vector, dict[str, Vector]]:
        """New weights and state; the arguments cannot be changed.

        Raises:
            ConfigError: it fails, or gives anything but a pair of finite weights ``[size]`` and named float32 arrays.
        """
        with blaming(f"server.kind: step of '{self.kind}'"):
            result = self.made.step(read_only(weights), read_only(delta), {name: read_only(value) for name, value in state.items()})
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._refusal("step", result, "a pair (new weights, new state)")
        moved, after = result
        if not isinstance(moved, np.ndarray) or moved.dtype.kind != "f" or moved.shape != weights.shape:
            raise self._refusal("step", moved, f"new weights as an array float32 [{len(weights)}]")
        if np.isfinite(delta).all() and not np.isfinite(moved).all():
            raise ConfigError(
                f"server.kind: step of '{self.kind}' gave weights that are NaN or infinite; mind divisions and the learning rate."
            )
        return np.array(moved, dtype=np.float32), self._state("step", after)

    def _state(self, method: str, state: Any) -> dict[str, Vector]:
        if not isinstance(state, dict):
            raise self._refusal(method, state, "a dict of name to float32 array as the state ({} for none)")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype != np.float32:
                raise self._refusal(method, value, f"float32 arrays as the state, by names, {name!r} among them")
        return state

    def _refusal(self, method: str, value: Any, wanted: str) -> ConfigError:
        what = f"an array {value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        return ConfigError(f"server.kind: {method} of '{self.kind}' returned {what}; return {wanted}.")
