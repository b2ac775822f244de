"""Whom a member shares its secrets and masks with: everybody in small cohorts, a random few in large ones.

Bell, Bonawitz, Gascón, Lepoint & Raykova 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, section 3: the members stand
on a circle in random order, and each has as neighbours the ``degree / 2`` members before and after it (Harary's graph). The order follows
from a hash of all keys, so all members know it alike, and nobody draws it.

A degree and a threshold are enough if the following holds with few exceptions (the tails of hypergeometric distributions, exactly):

- *Security*, up to 2**-40. Let no run of ``degree / 2`` members hold more than c of the members that collude with the driver, and let the
  threshold be ``degree / 2 + 2 + c``. Then members whose sum could be read by itself do not exist, whomever the driver lets drop out after
  it has seen the graph: the last of them on the circle, followed by no other of them in reach, has only itself, the ``degree / 2`` before
  it and c colluding members to give shares of its self-mask, which is one too few. Nor does anybody get both secrets of a member, even if
  the driver tells its neighbours different things: honest members give one share of two, so this would take ``2 * threshold`` shares of at
  most ``degree + 1 + 2 * c``.
- *Correctness*, up to 2**-20. Each member has at least ``threshold`` members that stay in its neighbourhood, itself included.

The degree grows with the logarithm of the number of members, because both tails fall exponentially with it. The colluding members are
assumed not to choose their keys with the graph in view: who tries 2**20 keys is left with a security of 2**-20.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, comb

#: Probabilities, as exponents of two, that a graph is not secure, or that the sum of the members that stay cannot be read.
SECURITY, CORRECTNESS = 40, 20


@dataclass(frozen=True)
class Graph:
    """Members on a circle, each with the same number of neighbours on both sides, or with all others.

    Attributes:
        circle: the members' numbers.
        degree: number of neighbours of a member.
        threshold: shares that give a secret back, of ``degree + 1``: a member has a share of its own secrets, too.
    """

    circle: tuple[int, ...]
    degree: int
    threshold: int
    _places: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {number: place for place, number in enumerate(self.circle)})

    def near(self, number: int) -> frozenset[int]:
        """A member and its neighbours."""
        if self.degree == len(self.circle) - 1:
            return frozenset(self.circle)
        place, reach = self._places[number], self.degree // 2
        return frozenset(self.circle[at % len(self.circle)] for at in range(place - reach, place + reach + 1))


def make_graph(seed: bytes, members: Iterable[int], quorum: int, complete: int, dropping: float, colluding: float) -> Graph:
    """Return the graph of a cohort.

    Args:
        seed: what the order on the circle follows from.
        members: their numbers.
        quorum: threshold of a graph in which all are neighbours.
        complete: number of members below which all are neighbours.
        dropping, colluding: largest shares of the members that drop out, and that collude with the driver.
    """
    circle = tuple(sorted(members, key=lambda number: hashlib.sha256(seed + number.to_bytes(4, "little")).digest()))
    sparse = None if len(circle) < complete else sparse_degree(len(circle), dropping, colluding)
    return Graph(circle, *(sparse or (len(circle) - 1, quorum)))


@lru_cache(maxsize=64)
def sparse_degree(members: int, dropping: float, colluding: float) -> tuple[int, int] | None:
    """Return a degree that is enough, which is even and about the least, and its threshold; None if only all others are enough.

    Args:
        members: number of members.
        dropping, colluding: as of :func:`make_graph`.
    """
    dropped, corrupt = ceil(dropping * members), ceil(colluding * members)

    def threshold(half: int) -> int:
        return half + 2 + _most(members - 1, corrupt, half, members)

    def enough(half: int) -> bool:
        return threshold(half) <= 2 * half and _stays(members, dropped, 2 * half, threshold(half))

    most = (members - 2) // 2
    high = 1
    while high < most and not enough(high):  # without it, the search would begin with numbers of millions of digits
        high *= 2
    found = bisect_left(range(min(high, most) + 1), True, lo=1, key=enough)
    return (2 * found, threshold(found)) if found <= min(high, most) else None


def _counts(marked: int, others: int, drawn: int) -> Iterator[tuple[int, int]]:
    """In how many ways so many are drawn of which ``found`` are marked: ``found``, ascending, and the number of ways."""
    least, most = max(0, drawn - others), min(marked, drawn)
    ways = comb(marked, least) * comb(others, drawn - least)
    for found in range(least, most + 1):
        yield found, ways
        ways = ways * (marked - found) * (drawn - found) // ((found + 1) * (others - drawn + found + 1))


def _most(population: int, marked: int, drawn: int, draws: int) -> int:
    """The least c so that with a probability of 1 - 2**-SECURITY none of so many draws has more than c marked."""
    whole, above = comb(population, drawn), 0
    for others, ways in _counts(population - marked, marked, drawn):
        above += ways
        if (draws * above) << SECURITY > whole:
            return drawn - others
    return 0


def _stays(members: int, dropped: int, degree: int, threshold: int) -> bool:
    """Whether with a probability of 1 - 2**-CORRECTNESS enough members stay in all neighbourhoods, of members that drop out and that stay."""
    failing = 0
    for count, stay, needed in ((dropped, members - dropped, threshold), (members - dropped, members - dropped - 1, threshold - 1)):
        failing += count * sum(ways for found, ways in _counts(stay, members - 1 - stay, degree) if found < needed)
    return failing << CORRECTNESS <= comb(members - 1, degree)
