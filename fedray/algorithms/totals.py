"""Exact totals over records: the same bits whichever client holds which record.

Each record's contribution is rounded once to a grid of 2**-32 and added as a whole number. A client's totals leave as balanced digits of
base 2**10, float32, six for each total: small whole numbers, which the exact sum and its float32 mean carry without loss. The driver puts
the digits of all clients' totals together again.

An algorithm that sends totals declares ``exact`` in its traits and gives their fields ``weigh="one"``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError, FedrayError, UpdateRejected
from fedray.parameters import Vector

#: Float32 values that a total is sent as.
DIGITS = 6
#: Clients whose totals can be added up in a round. A digit of the sum stays below 2**22, so that the mean, in float32, tells it exactly.
MOST_CLIENTS = 2**13
#: What no total over a client's records, or over all records, may reach.
LARGEST = 2.0**29
_BITS = 10  # of a digit
_FRACTION = 32  # bits of the grid
_LIMIT = int(LARGEST) << _FRACTION


class RecordTotals:
    """A client's totals over its records.

    Attributes:
        values: int64 ``[size]``, in units of 2**-32.
    """

    def __init__(self, size: int) -> None:
        self.values: npt.NDArray[np.int64] = np.zeros(size, dtype=np.int64)

    def add(self, start: int, contributions: npt.NDArray[np.float64]) -> None:
        """Add contributions ``[totals, records]`` to the totals from ``start`` on, each rounded once, half to even. Overwrites them.

        The rounding error of a total is at most 2**-33 for each record.

        Raises:
            UpdateRejected: a contribution is not finite, or a total could reach :data:`LARGEST`.
        """
        here = slice(start, start + len(contributions))
        self.values[here] += _whole(contributions).sum(1)
        self._check(self.values[here])

    def scatter(self, where: npt.NDArray[np.int64], contributions: npt.NDArray[np.float64]) -> None:
        """Add contributions ``[..., records]``, each rounded once, to the totals at ``where``, to whose shape they are repeated. Overwrites
        them. Of one record, no two may go to one total.

        Raises:
            UpdateRejected: as :meth:`add`.
        """
        np.add.at(self.values, where.ravel(), np.broadcast_to(_whole(contributions), where.shape).ravel())
        self._check(self.values)

    @staticmethod
    def _check(totals: npt.NDArray[np.int64]) -> None:
        if np.abs(totals).max(initial=0) >= _LIMIT:
            raise _too_large()

    def digits(self, start: int, stop: int) -> Vector:
        """The totals from ``start`` to ``stop`` as what is sent of them, float32 ``[DIGITS * (stop - start)]``, lowest digits first."""
        left, half = self.values[start:stop].copy(), 1 << (_BITS - 1)
        found = np.empty((DIGITS, len(left)), dtype=np.float32)
        for k in range(DIGITS - 1):
            digit = ((left + half) & ((1 << _BITS) - 1)) - half
            found[k] = digit
            left = (left - digit) >> _BITS
        found[-1] = left  # at most 2**11 in magnitude: within what a coordinate of an update may be
        return found.reshape(-1)


def _whole(contributions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Contributions ``[..., records]`` in units of the grid; they are overwritten."""
    contributions *= 2.0**_FRACTION
    if not float(np.abs(contributions).max(initial=0.0)) * contributions.shape[-1] < _LIMIT:
        raise _too_large()
    return np.rint(contributions, out=contributions).astype(np.int64)


def check_cohort(kind: str, clients: int) -> None:
    """Refuse rounds of more ``clients`` than totals can be added up of, before anything is computed.

    Raises:
        ConfigError: they are too many; ``kind`` is the algorithm's.
    """
    if clients > MOST_CLIENTS:
        raise ConfigError(
            f"cohort: up to {clients} clients would take part in a round, but the exact totals of '{kind}' can be added up of at most "
            f"{MOST_CLIENTS}; use cohort.kind=fixed with a smaller size."
        )


def totals_of(mean: Vector, clients: float) -> npt.NDArray[np.float64]:
    """All clients' totals, float64 ``[size]``: the exact sums, rounded once.

    Args:
        mean: of what :meth:`RecordTotals.digits` gave, float32 ``[DIGITS * size]``.
        clients: of whom it is the mean.

    Raises:
        FedrayError: too many clients, a total that reaches :data:`LARGEST`, or a mean of something else than digits.
    """
    if clients > MOST_CLIENTS:
        raise FedrayError(
            f"algorithm.kind: exact totals of {clients:g} clients cannot be added up; let at most {MOST_CLIENTS} take part in a round."
        )
    sums = mean.reshape(DIGITS, -1).astype(np.float64) * clients
    whole = np.rint(sums)
    if not (np.abs(sums - whole) <= 0.25).all():
        raise FedrayError("algorithm.kind: the sum of exact totals is not whole, so something has changed what clients sent; take it out.")
    total, carry = np.zeros(sums.shape[1], dtype=np.int64), np.zeros(sums.shape[1], dtype=np.int64)
    for k, digit in enumerate(whole.astype(np.int64)):
        digit += carry
        carry = digit >> _BITS
        if k < DIGITS - 1:
            total += (digit & ((1 << _BITS) - 1)) << (_BITS * k)
    shift = _BITS * (DIGITS - 1)
    if (digit >= _LIMIT >> shift).any() or (digit < -(_LIMIT >> shift)).any():
        raise _too_large()
    total += digit << shift
    return total.astype(np.float64) * 2.0**-_FRACTION


def _too_large() -> UpdateRejected:
    return UpdateRejected(
        f"a total over records is not below {LARGEST:g} or not a number; check the data, and scale the features (data.normalize)."
    )
