"""The driver's part of a guarantee for whole clients: it limits participation and turns a round's sum into a private mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.errors import ClaimVoid
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.csprng import noise_source
from fedray.privacy.mechanisms.base import DriverStep, Vector
from fedray.privacy.mechanisms.clipping import next_clip
from fedray.privacy.regime import Regime
from fedray.updates.stage import Stage

_LONG_AGO = -(1 << 30)


class Release(Regime):
    """Limits participation and turns each round's sum into a mean that may be released.

    Noise that is correlated across rounds exists only in this object. A new process has a new object, so its first round is charged again
    and begins a new tree or matrix.

    Args:
        plan: the run's plan.
        insecure_seed: seed of replayable noise, for tests only; None for cryptographic noise.
        stages: of the config, each of which keeps the number of values.
    """

    def __init__(self, plan: ClientPlan, insecure_seed: int | None = None, stages: Sequence[Stage] = ()) -> None:
        super().__init__(0, plan.facts.clients, stages)  # nothing follows from the run's seed: coins are secret
        self.plan, self.clip = plan, plan.clip
        self._insecure_seed = insecure_seed
        self._driver: DriverStep | None = None
        self._covered = _LONG_AGO
        self._last = np.full(plan.facts.clients, _LONG_AGO, dtype=np.int64)
        self._times = np.zeros(plan.facts.clients, dtype=np.int64)

    @property
    def noised(self) -> bool:
        """Whether the driver noises a round's sum; under local privacy the clients add all the noise."""
        return self.plan.regime != "local"

    @property
    def plan_sha256(self) -> str | None:
        """Hash of the plan, which receipts name."""
        return self.plan.sha256

    @property
    def hides_clients(self) -> bool:
        """True: who and how many took part is not released."""
        return True

    @property
    def counts_without_updates(self) -> bool:
        """Whether the driver adds all the noise, so that lost updates do not change what is released."""
        return self.plan.regime == "client"

    def participants(self, updates: int) -> float:
        """Number of clients that the next model may depend on: the expected number where the driver adds noise, for how many took part
        is secret then; else ``updates``.
        """
        return float(self.plan.facts.cohort if self.noised else updates)

    def due(self, round_: int) -> bool:
        """Whether this round needs a charge because no earlier charge covers it."""
        return round_ >= self._covered

    def begin(self, round_: int) -> None:
        """Begin the rounds of a charge that was just made: make new noise and reset the counts of participations."""
        self._covered = round_ + self.plan.charging.span
        self._driver = self.plan.mechanism.driver(self.plan.noise_multiplier, self.plan.facts, self.size, round_)
        self._last[:] = _LONG_AGO
        self._times[:] = 0

    @property
    def size(self) -> int:
        """Number of values that each client sends."""
        return self._mechanism_stage(0).size(self.plan.facts.dimension)

    def eligible(self, round_: int) -> npt.NDArray[np.bool_] | None:
        """Which clients may take part by separation and number of participations, bool ``[clients]``; None if neither is limited."""
        charging = self.plan.charging
        if charging.span == 1 or round_ >= self._covered:
            return None
        return (round_ - self._last >= charging.separation) & (self._times < charging.most)

    def taken(self, round_: int, cohort: Sequence[int]) -> None:
        """Record a round's participants before they train.

        Raises:
            ClaimVoid: a client takes part that may not.
        """
        allowed = self.eligible(round_)
        if allowed is not None and not allowed[list(cohort)].all():
            raise ClaimVoid(f"round {round_ + 1}: a client takes part more often than its charge covers; the sum must not be used.")
        self._last[list(cohort)] = round_
        self._times[list(cohort)] += 1

    def drawn_from(self, round_: int, solvent: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Who is charged for being drawn is drawn like all others and left out only then; under local privacy the solvent ones."""
        if not self.noised:
            return solvent
        allowed = self.eligible(round_)
        return np.ones_like(solvent) if allowed is None else allowed

    def coins(self, round_: int) -> npt.NDArray[np.float64]:
        """A round's secret coins, float64 ``[clients]`` in [0, 1); every call draws new ones."""
        return noise_source(self._insecure_seed, round_, "cohort").uniform(self.plan.facts.clients)

    def stages(self, round_: int) -> tuple[Stage, ...]:
        """What each update goes through in this round. The clip is last before the sum; local noise comes before lossy stages, which then
        work on what is private already.
        """
        mechanism = self._mechanism_stage(round_)
        if self.noised:
            return (*self._own_stages, mechanism)
        lossy = tuple(stage for stage in self._own_stages if stage.place == "lossy")
        return (*(stage for stage in self._own_stages if stage not in lossy), mechanism, *lossy)

    def _mechanism_stage(self, round_: int) -> Stage:
        plan = self.plan
        return plan.mechanism.client(plan.noise_multiplier, self.clip, plan.facts, plan.adaptive is not None, round_)

    def mean(self, values: npt.NDArray[np.int64], bits: int, round_: int) -> Vector:
        """See :meth:`fedray.privacy.regime.Regime.mean`. An adaptive clip norm is updated."""
        if self._driver is None or round_ >= self._covered:
            raise ClaimVoid(f"round {round_ + 1}: no charge in the ledger covers it; its sum must not be used.")
        plan, source = self.plan, noise_source(self._insecure_seed, round_, "driver")
        total = self._driver.release(values, bits, plan.noise_std(self.clip), source)
        if plan.adaptive is not None:
            a = plan.adaptive
            self.clip = next_clip(self.clip, float(total[-1]), plan.facts.cohort, a.quantile, a.rate)
            total = total[:-1]
        return (total / plan.denominator).astype(np.float32)

    def figures(self) -> dict[str, float]:
        """The clip norm, where it adapts."""
        return {} if self.plan.adaptive is None else {"privacy/clip": self.clip}

    def state(self) -> dict[str, Any]:
        """State for a checkpoint. It depends on released values only and never contains noise."""
        return {"clip": self.clip}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's :meth:`state`."""
        self.clip = float(state.get("clip", self.clip))
