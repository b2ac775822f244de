"""PrivUnit: a pure epsilon-LDP, unbiased estimate of a vector of bounded norm."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from fedray.errors import ConfigError
from fedray.privacy.mechanisms.base import Floats
from fedray.updates.norm import l2_norm
from fedray.updates.stage import Source

#: Largest epsilon that is used; for larger values the probability of the cap would exceed float64.
MAX_EPSILON = 500.0
#: Share of epsilon that is reserved for rounding in F and p.
_MARGIN = 2.0**-20


class PrivUnit:
    """A random vector of fixed length, drawn with raised probability from a cap around the input's direction.

    The input x, of norm at most C, is completed by one coordinate to a point u of the unit sphere. With probability p a
    direction V is uniform on the cap {<V, u> >= gamma}, else on the rest of the sphere; V / m has the mean u. For a
    threshold gamma, p is the largest that epsilon allows: density p / F on the cap, with F its share of the sphere, over
    (1 - p) / (1 - F) elsewhere is exactly exp(epsilon). Gamma is chosen such that the estimate is shortest.

    Args:
        dimension: length d of a vector.
        clip: norm bound C of the input.
        epsilon: epsilon of one call of :meth:`encode`, for any two inputs.

    Attributes:
        threshold: gamma.
        share: F, the probability of the cap under the uniform distribution.
        cap_probability: p.
        length: norm of the estimate before its added coordinate is dropped, C / m; the mean squared error is below its square.

    Raises:
        ConfigError: ``epsilon`` or ``clip`` is not a positive number.

    Source: Bhowmick, Duchi, Freudiger, Kapoor & Rogers 2018, Protection Against Reconstruction and Its Applications in Private
        Federated Learning, algorithm 1; Asi, Feldman & Talwar 2022, Optimal Algorithms for Mean Estimation under Local Differential
        Privacy (p and gamma chosen together)
    """

    def __init__(self, dimension: int, clip: float, epsilon: float) -> None:
        if not 0 < epsilon < math.inf:
            raise ConfigError(f"privacy.mechanism: PrivUnit needs an epsilon above 0 for one update, but it is {epsilon:g}.")
        if not 0 < clip < math.inf:
            raise ConfigError(f"privacy.clip: should be a positive number, but is {clip:g}.")
        self._clip = clip
        self._half = dimension / 2.0  # (1 + <V, u>) / 2 of a uniform V on the sphere in d + 1 dimensions is Beta(d / 2, d / 2)
        gain = min(epsilon, MAX_EPSILON) * (1.0 - _MARGIN)
        # In units of the inner product's standard deviation; beyond sqrt(2 epsilon) of them a cap is too small to matter.
        unit = 1.0 / math.sqrt(dimension + 1.0)
        widest = min(2.0 * math.sqrt(gain) + 3.0, (1.0 - 1e-9) / unit)
        best = optimize.minimize_scalar(
            lambda t: -self._log_shrinkage(t * unit, gain), bounds=(0.0, widest), method="bounded", options={"xatol": 1e-9}
        )
        self.threshold = float(best.x) * unit
        self.share = self._cap(self.threshold)
        odds = math.exp(gain + math.log(self.share) - math.log1p(-self.share))
        # Rounded up to what coins of 53 bits can do, so that the rest of the sphere is never too unlikely.
        rest = math.ldexp(math.ceil(math.ldexp(1.0 / (1.0 + odds), 53)), -53)
        self.cap_probability = 1.0 - rest
        excess = self.cap_probability / self.share - rest / (1.0 - self.share)
        self.length = clip / (math.exp(self._log_cap_mean(self.threshold)) * excess)

    def encode(self, x: npt.NDArray[np.float32] | npt.NDArray[np.float64], source: Source) -> Floats:
        """A random vector with the mean ``x``, float64 ``[d]``.

        If ``x`` is above the clip norm it is scaled down to it, and if it is not finite it counts as zeros.
        """
        norm = l2_norm(x) / self._clip
        point = x.astype(np.float64)
        if not math.isfinite(norm):
            point, norm = np.zeros_like(point), 0.0
        point /= self._clip * max(norm, 1.0)
        u = np.append(point, math.sqrt(max(0.0, 1.0 - min(norm, 1.0) ** 2)))
        along = self._inner_product(source)
        across = source.normal(len(u))
        across -= u * (float(np.dot(across, u)) / float(np.dot(u, u)))
        across *= self.length * math.sqrt(1.0 - along * along) / math.sqrt(float(np.dot(across, across)))
        across += u * (self.length * along / math.sqrt(float(np.dot(u, u))))
        return np.asarray(across[:-1])

    def _inner_product(self, source: Source) -> float:
        """<V, u>, drawn by inversion from its distribution on the cap or on the rest; each is computed from its own pole for accuracy."""
        coin, level = source.uniform(2).tolist()
        level += 2.0**-54  # never 0
        if coin < self.cap_probability:
            return 1.0 - 2.0 * float(special.betaincinv(self._half, self._half, level * self.share))
        return 2.0 * float(special.betaincinv(self._half, self._half, level * (1.0 - self.share))) - 1.0

    def _cap(self, gamma: float) -> float:
        return float(special.betainc(self._half, self._half, (1.0 - gamma) / 2.0))

    def _log_cap_mean(self, gamma: float) -> float:
        """The logarithm of A, the integral of <V, u> over the cap under the uniform distribution of V."""
        return self._half * math.log1p(-gamma * gamma) - math.log(2.0 * self._half) - float(special.betaln(0.5, self._half))

    def _log_shrinkage(self, gamma: float, epsilon: float) -> float:
        """The logarithm of m = E <V, u> = A (p / F - (1 - p) / (1 - F)) = A (e**eps - 1) / (1 + (e**eps - 1) F) for the largest p."""
        share = self._cap(gamma)
        if share == 0.0:
            return -math.inf
        log_gain = epsilon + math.log(-math.expm1(-epsilon))
        return self._log_cap_mean(gamma) + log_gain - float(np.logaddexp(0.0, log_gain + math.log(share)))
