"""What a run's guarantee decides in every round, for all who need not know which guarantee it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.parameters import Vector
from fedray.rng import generator
from fedray.updates.stage import Stage


class Regime:
    """The regime of runs that protect no whole client: cohorts are drawn from the run's seed and shown, and sums are used as they are.

    Records, where they are protected, are protected by local training. :class:`fedray.privacy.release.Release` is the regime of runs that
    protect whole clients.

    Args:
        seed: the run's seed.
        clients: number of clients.
        stages: the config's stages, each of which keeps the number of values.
    """

    def __init__(self, seed: int, clients: int, stages: Sequence[Stage] = ()) -> None:
        self._seed, self._clients, self._own_stages = seed, clients, tuple(stages)

    @property
    def plan_sha256(self) -> str | None:
        """Hash of the plan for whole clients, which receipts name; None where they are not protected."""
        return None

    @property
    def noised(self) -> bool:
        """Whether the model sees a round's sum only through :meth:`mean`, which noises it. An empty round is then released like any other."""
        return False

    @property
    def hides_clients(self) -> bool:
        """Whether who and how many took part stays out of figures, faults, sizes and durations."""
        return False

    @property
    def counts_without_updates(self) -> bool:
        """Whether a round counts however many updates are lost, because what it releases does not depend on them."""
        return False

    @property
    def has_stages(self) -> bool:
        """Whether the config has stages."""
        return bool(self._own_stages)

    def stages(self, round_: int) -> tuple[Stage, ...]:
        """What each update goes through in this round, in order."""
        return self._own_stages

    def coins(self, round_: int) -> npt.NDArray[np.float64]:
        """The coins of a round's cohort, float64 ``[clients]`` in [0, 1)."""
        return generator(self._seed, "cohort", round_).random(self._clients)

    def drawn_from(self, round_: int, solvent: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """The clients from which a cohort is drawn, bool ``[clients]``; ``solvent``: those whose budget allows another charge."""
        return solvent

    def due(self, round_: int) -> bool:
        """Whether this round needs a charge because no earlier charge covers it."""
        return True

    def begin(self, round_: int) -> None:
        """Begin the rounds of a charge that was just made."""

    def taken(self, round_: int, cohort: Sequence[int]) -> None:
        """Record a round's participants before they train.

        Raises:
            ClaimVoid: a client takes part that may not.
        """

    def mean(self, values: npt.NDArray[np.int64], bits: int, round_: int) -> Vector:
        """The noised sum over the public denominator, float32 ``[dimension]``; only for regimes that noise sums.

        Args:
            values: sum of the clients' values, int64 ``[size]``.
            bits: number of fraction bits of ``values`` (0 for a ring).
            round_: number of the round.

        Raises:
            ClaimVoid: no charge covers this round.
        """
        raise NotImplementedError

    def participants(self, updates: int) -> float:
        """Number of clients that the next model may depend on."""
        return float(updates)

    def figures(self) -> dict[str, float]:
        """The regime's own metrics of a round."""
        return {}

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's :meth:`state`."""
