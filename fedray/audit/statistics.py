"""The statistical tests behind the checks; each fails for a correct mechanism with probability below one in a million."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedray.audit.findings import FALSE_ALARM, Check
from fedray.errors import FedrayError

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

#: Numbers of standard deviations by which a sum of squares falls below or exceeds its mean with probability below 1e-6 (one-sided Bernstein
#: bound); the upper tail is heavier than a Gaussian's.
_SHORT, _EXCESS = 6.5, 9.0
#: Largest allowed correlation of independent values, in standard deviations.
_CORRELATED = 5.5


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The result of a check; if it raises an error, the check has failed and the error's sentence is its finding."""
    try:
        return check()
    except FedrayError as error:
        return Check(name, False, str(error))


def noise_check(name: str, noise: Floats, std: float, single: bool = True) -> Check:
    """Check that values are N(0, std^2): their variance (chi-square), their mean, and with ``single`` their distribution (Kolmogorov-Smirnov).

    Args:
        name: name of the check.
        noise: the values, float64 ``[d]``.
        std: claimed standard deviation.
        single: whether each value is one draw; a sum of several draws is nearly Gaussian for any distribution of the draws.
    """
    d = len(noise)
    ratio = float(np.sqrt(np.mean(np.square(noise)))) / std
    low, high = (float(np.sqrt(stats.chi2.ppf(p, d) / d)) for p in (FALSE_ALARM / 6, 1 - FALSE_ALARM / 6))
    centred = abs(float(noise.mean())) * np.sqrt(d) / std < stats.norm.isf(FALSE_ALARM / 6)
    law = float(stats.kstest(noise / std, "norm").pvalue) if single and np.isfinite(ratio) else 1.0
    passed = low <= ratio <= high and bool(centred) and law > FALSE_ALARM / 3
    found = f"standard deviation {ratio:.4f} of what is claimed over {d} values (allowed {low:.3f} to {high:.3f})"
    if low <= ratio <= high and not passed:
        found += "; but the distribution is not a centred Gaussian"
    return Check(name, passed, found, FALSE_ALARM)


def independence_check(name: str, noises: Mapping[str, Floats]) -> Check:
    """Check that noise vectors are independent, by their pairwise correlations and by each one's correlation with its shifts.

    Args:
        name: name of the check.
        noises: the purpose of each noise vector and its values, float64 ``[d]``.
    """
    largest, where = 0.0, ""
    for (a, x), (b, y) in combinations(noises.items(), 2):
        largest, where = max((largest, where), (_correlation(x, y), f"{a} and {b}"))
    for a, x in noises.items():
        half = len(x) // 2
        largest, where = max((largest, where), (_correlation(x[:half], x[half : 2 * half]), f"the halves of {a}"))
        largest, where = max((largest, where), (_correlation(x[1:], x[:-1]), f"neighbours in {a}"))
    return Check(
        name,
        largest <= _CORRELATED,
        f"largest correlation {largest:.2f} standard deviations, of {where} (allowed {_CORRELATED})",
        FALSE_ALARM,
    )


def coin_check(name: str, drawn: Bits, rate: float) -> Check:
    """Check that records are sampled by one independent coin per record and step, with probability ``rate``.

    The tests are the mean (exact binomial), the spread of the batch sizes and of the records' counts, the correlation of consecutive steps,
    and the correlation with the records' order. Batches of a fixed size have no spread.

    Args:
        name: name of the check.
        drawn: whether each record was sampled in each step, bool ``[steps, records]``.
        rate: claimed sampling rate, above 0.
    """
    steps, records = drawn.shape
    if rate == 1:
        return Check(name, bool(drawn.all()), f"{int(drawn.sum())} of {drawn.size} draws at rate 1")
    total = int(drawn.sum())
    p = float(stats.binomtest(total, drawn.size, rate).pvalue)
    sizes = _spread(drawn.sum(1), records, rate)
    counts = _spread(drawn.sum(0), steps, rate)
    centred = drawn - rate
    follow = float((centred[1:] * centred[:-1]).sum() / (rate * (1 - rate) * np.sqrt((steps - 1) * records)))
    place = np.arange(records) - (records - 1) / 2
    order = float(centred.sum(0) @ place / np.sqrt(steps * rate * (1 - rate) * (place @ place)))
    spread = all(-_SHORT < z < _EXCESS for z in (sizes, counts))
    passed = p > FALSE_ALARM / 4 and spread and abs(follow) < _EXCESS and abs(order) < _CORRELATED
    found = (
        f"{total / drawn.size:.4f} drawn where {rate:.4f} is claimed; spread of batch sizes {sizes:+.1f}, of records' counts {counts:+.1f}, "
        f"correlation of steps {follow:+.1f}, with the records' order {order:+.1f} standard deviations from independent coins"
    )
    return Check(name, passed, found, FALSE_ALARM)


def secrecy_check(name: str, again: Mapping[str, tuple[Bits, Bits]], rate: float) -> Check:
    """Check that coins of a second draw are independent of those of the first.

    Among the coins that showed the rarer side first, the number that shows it again is tested by the exact binomial distribution.

    Args:
        name: name of the check.
        again: how the second draw was made, with the first and the second coins, bool of equal shape.
        rate: probability of each coin.
    """
    if rate == 1:
        return Check(name, True, "no coin is secret, because everyone is drawn at rate 1")
    rarer, told, passed = min(rate, 1 - rate), [], True
    for what, (before, after) in again.items():
        first, second = (before, after) if rate <= 0.5 else (~before, ~after)
        marked, same = int(first.sum()), int((first & second).sum())
        passed &= marked == 0 or float(stats.binom.sf(same - 1, marked, rarer)) > FALSE_ALARM / len(again)
        told.append(f"{same} of {marked} again after {what}")
    return Check(name, passed, f"{'; '.join(told)} (by chance one in {1 / rarer:.3g})", FALSE_ALARM)


def _spread(counts: npt.NDArray[np.int64], trials: int, rate: float) -> float:
    """The sum of squared deviations of binomial counts, minus its mean, divided by its standard deviation."""
    variance = trials * rate * (1 - rate)
    fourth = variance * (1 + 3 * (trials - 2) * rate * (1 - rate))
    squares = np.square(counts - trials * rate)
    return float((squares.sum() - len(counts) * variance) / np.sqrt(len(counts) * (fourth - variance**2)))


def _correlation(x: Floats, y: Floats) -> float:
    """Absolute correlation, in standard deviations of that of independent values; infinite if one vector is zero or not finite."""
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return abs(float(x @ y)) / scale * float(np.sqrt(len(x))) if scale > 0 and np.isfinite(scale) else float("inf")


def largest(values: Sequence[float]) -> float:
    """The largest value; a value that is not finite counts as infinite."""
    return max((v if np.isfinite(v) else float("inf") for v in values), default=0.0)
