"""Integer noise against the exact laws: the tables to the last bit, the draws by statistics.

Statistics fail for correct code with probability below 1e-6 each.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from fedray.errors import ConfigError
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.privacy.mechanisms.integernoise import MAX_SIGMA, _table, integer_noise, table_error

ALPHA = 1e-6
KINDS = ["ddg", "skellam"]


def probabilities(kind: str, sigma: float, last: int) -> list[mpmath.mpf]:
    """P(0), P(1) ... P(last) of the law, to 60 digits."""
    variance = mpmath.mpf(sigma) ** 2
    if kind == "skellam":
        return [mpmath.exp(-variance) * mpmath.besseli(k, variance) for k in range(last + 1)]
    weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * variance)) for k in range(last + 60)]
    total = 2 * mpmath.fsum(weights) - 1
    return [weight / total for weight in weights[: last + 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 3.3, 25.0])
def test_a_table_is_the_law_to_its_128_bits(kind, sigma) -> None:
    table = _table(kind, sigma)
    with mpmath.workdps(60):
        exact = probabilities(kind, sigma, len(table.upper))
        distance, before, below = mpmath.mpf(0), 0, mpmath.mpf(0)
        for k, (upper, lower) in enumerate(zip(table.upper.tolist(), table.lower.tolist(), strict=True)):
            threshold = (upper << 64) + lower
            assert threshold >= before
            law = exact[k] if k == 0 else 2 * exact[k]
            distance += abs(mpmath.mpf(threshold - before) / 2**128 - law)
            before, below = threshold, below + law
        distance += abs(mpmath.mpf(2**128 - before) / 2**128 - 2 * exact[-1]) + abs(1 - below - 2 * exact[-1])
        assert distance / 2 <= table_error(kind, sigma)
    assert table_error(kind, sigma) < 1e-34


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
def test_draws_have_the_exact_frequencies(kind, sigma) -> None:
    n = 200_000
    draws = integer_noise(kind, sigma, n, Csprng())
    assert draws.shape == (n,)
    assert draws.dtype == np.int64
    reach = int(8 * sigma) + 4
    half = np.array([float(p) for p in probabilities(kind, sigma, reach)])
    law = np.concatenate([half[:0:-1], half])
    seen = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    often = law * n >= 10
    observed, expected = np.append(seen[often], seen[~often].sum()), np.append(law[often] * n, n * (1 - law[often].sum()))
    if expected[-1] < 10:
        observed = np.append(observed[:-2], observed[-2:].sum())
        expected = np.append(expected[:-2], expected[-2:].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > ALPHA


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_sigma_looks_normal_and_has_its_variance(kind) -> None:
    n, sigma = 300_000, 2_000.5
    draws = integer_noise(kind, sigma, n, Csprng())
    assert stats.kstest(draws / sigma, "norm").pvalue > ALPHA
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], n) / n
    assert low < float(np.mean((draws / sigma) ** 2)) < high
    assert abs(draws.mean() / sigma) < stats.norm.isf(ALPHA / 2) / np.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_draws_and_signs_are_independent(kind) -> None:
    n = 100_000
    draws = integer_noise(kind, 3.0, n, InsecureSeeded(1, 0, "a"))
    bound = stats.norm.isf(ALPHA / 4) / np.sqrt(n)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < bound
    assert abs(np.corrcoef(np.sign(draws), np.abs(draws))[0, 1]) < bound


@pytest.mark.parametrize("source", [Csprng(), InsecureSeeded(1, 2, "a")])
def test_words_are_uniform_in_every_byte(source) -> None:
    words = source.u64(40_000)
    assert words.dtype == np.uint64
    for shift in range(0, 64, 8):
        seen = np.bincount(((words >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256)
        assert stats.chisquare(seen).pvalue > ALPHA / 8


class Words:
    """A source whose 64-bit words are given, one call after another."""

    def __init__(self, *calls: list[int]) -> None:
        self._calls = [np.array(call, dtype=np.uint64) for call in calls]

    def u64(self, n: int) -> np.ndarray:
        words = self._calls.pop(0)
        assert len(words) == n
        return words


@pytest.mark.parametrize("kind", KINDS)
def test_where_64_bits_cannot_tell_the_next_64_do(kind) -> None:
    table = _table(kind, 1.7)
    for k in range(len(table.upper)):
        high, low = int(table.upper[k]), int(table.lower[k])
        for word in (low - 1, low, low + 1, 0, 2**64 - 1):
            if not 0 <= word < 2**64:
                continue
            exact = (high << 64) + word
            expected = sum((u << 64) + v <= exact for u, v in zip(table.upper.tolist(), table.lower.tolist(), strict=True))
            drawn = integer_noise(kind, 1.7, 1, Words([high], [word], [0]))
            assert drawn.tolist() == [expected]
    assert integer_noise(kind, 1.7, 2, Words([0, 0], [], [1 << 7])).tolist() == [0, 0]
    top = int(table.upper[3]) - 1
    assert integer_noise(kind, 1.7, 2, Words([top, top], [], [1 << 6])).tolist() == [3, -3]


def test_no_noise_is_no_noise() -> None:
    assert not integer_noise("ddg", 0.0, 5, Csprng()).any()
    assert table_error("skellam", 0.0) == 0.0
    assert len(integer_noise("ddg", 1.0, 0, Csprng())) == 0


def test_the_error_bound_covers_every_entry_of_the_table() -> None:
    for sigma in (0.1, 1.0, 100.0, 5_000.0):
        for kind in KINDS:
            assert Fraction(table_error(kind, sigma)) >= len(_table(kind, sigma).upper) * Fraction(1, 2**128)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf"), MAX_SIGMA * 1.01])
def test_a_sigma_without_a_table_is_refused(sigma) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mechanism\.scale"):
        integer_noise("ddg", sigma, 3, Csprng())
    with pytest.raises(ConfigError):
        table_error("skellam", sigma)
