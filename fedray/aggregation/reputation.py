"""Reputation: a score for each client from how its updates agree with the others', remembered from round to round.

The parts are known, their combination is this project's: evidence that fades (Jøsang, Ismail 2002, The Beta Reputation System, section 2.5),
updates that are too alike do not vouch for each other (Fung, Yoon, Beschastnikh 2020, The Limitations of Federated Learning in Sybil Settings,
RAID), and no update counts at more than the usual length (Sun et al. 2019, Can You Really Backdoor Federated Learning?).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedray.aggregation.each import Each
from fedray.aggregation.root import RootUse
from fedray.aggregation.rule import Memory, Rule
from fedray.errors import ConfigError
from fedray.parameters import Values, Vector

Numbers = npt.NDArray[np.float64]

#: Evidence of agreeing as the typical client does that everyone begins with.
_PRIOR = 0.5
#: Cosine from which updates count as copies of each other.
_COPY = 0.98
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}


@dataclass(frozen=True)
class Reputation(Rule[Each]):
    """Mean of the updates by the clients' scores, at no more than the median length; clients with a score below the threshold are muted.

    Source: scores from evidence that fades, Jøsang, Ismail 2002, The Beta Reputation System; copies, Fung et al. 2020, The Limitations of
        Federated Learning in Sybil Settings

    A score is 1 for a client that agrees with the others as the typical one does, 0 for one that says nothing, and below for one that contradicts. A muted
    client is asked and judged as before, but its update does not count, so that it is heard again when its score has risen. With a root set the loss on it is
    half of the evidence.

    Attributes:
        threshold: score below which a client is muted, below 1; the weight rises from 0 there to 1 at score 1.
        forgetting: share of all earlier evidence that fades with each turn of a client, in (0, 1).
        longest: an update longer than so many times the round's median length contradicts, above 1.
        remember: file in which scores outlive the run, for the next one of the same federation; null: they do not.
    """

    threshold: float = 0.0
    forgetting: float = 0.1
    longest: float = 3.0
    remember: str | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.threshold < 1.0:
            raise ConfigError(f"aggregation.threshold: {self.threshold} is not below 1, which is the score of the typical client.")
        if not 0.0 < self.forgetting < 1.0:
            raise ConfigError(f"aggregation.forgetting: {self.forgetting} is not in (0, 1).")
        if not 1.0 < self.longest < math.inf:
            raise ConfigError(f"aggregation.longest: {self.longest} is not above 1.")
        if self.remember == "":
            raise ConfigError("aggregation.remember: is empty; name a file, or leave it out.")

    def root(self) -> RootUse:
        """Where there is one, its loss is evidence."""
        return "may"

    def lasting(self) -> str | None:
        """The file in which scores outlive the run."""
        return self.remember

    def begin(self, clients: int, size: int) -> Memory:
        """``support``, ``scale``: evidence for each client, and what the typical one would have, float64; ``turns``: int64, how often it was judged."""
        return {"support": np.zeros(clients), "scale": np.zeros(clients), "turns": np.zeros(clients, dtype=np.int64)}

    def held(self, updates: int) -> int:
        """Products of all pairs, who is compared with whom, and the product of the two."""
        return 3 * 8 * updates**2 + updates**2

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        """The mean, and the evidence with this round's."""
        where = np.array(got.clients, dtype=np.int64)
        evidence = self._evidence(got, self._trust(_scores(kept)[where]))
        support, scale, turns = (np.array(kept[name]) for name in ("support", "scale", "turns"))
        support[where] = (1 - self.forgetting) * support[where] + evidence
        scale[where] = (1 - self.forgetting) * scale[where] + max(0.0, float(np.median(evidence)))
        turns[where] += 1
        after = {"support": support, "scale": scale, "turns": turns}
        trust = self._trust(_scores(after)[where])
        factors = trust * _shortening(got) / (trust.sum() or 1.0)
        return got.weighted_sum(factors), after

    def of_clients(self, kept: Mapping[str, Values]) -> dict[str, Values]:
        """``score``, ``weight``, ``muted`` and ``turns`` of each client."""
        scores = _scores(kept)
        return {"score": scores, "weight": self._trust(scores), "muted": scores < self.threshold, "turns": kept["turns"]}

    def figures(self, kept: Mapping[str, Values]) -> dict[str, float]:
        """How many clients are muted, and quantiles of the scores of those who have had a turn."""
        scores = _scores(kept)
        known = scores[kept["turns"] > 0]
        quantiles = {f"score_{name}": float(np.quantile(known, q)) for name, q in _QUANTILES.items()} if len(known) else {}
        return {"muted": float((scores < self.threshold).sum()), **quantiles}

    def _trust(self, scores: Numbers) -> Numbers:
        found: Numbers = np.clip((scores - self.threshold) / (1.0 - self.threshold), 0.0, 1.0)
        return found

    def _evidence(self, got: Each, trust: Numbers) -> Numbers:
        """What this round says for each client, from -1 to 1."""
        found = agreement(got.products, trust * _shortening(got))
        lengths = np.sqrt(got.products.diagonal())
        found[lengths > self.longest * np.median(lengths)] = -1.0
        if got.root is not None:
            losses = got.root.losses(got)
            usual = float(np.median(losses))
            worth = np.divide(usual, losses, out=np.ones(got.count), where=losses > usual)
            found = (found + 2.0 * worth - 1.0) / 2.0
        return found


def agreement(products: Numbers, weights: Numbers) -> Numbers:
    """The cosine of each of n updates with the weighted sum of the others, float64 ``[n]``; 0 where there is none.

    Copies of an update are left out of what it is compared with, unless they are most of the updates: a few who send the same would vouch for each other.

    Args:
        products: inner products of all pairs of updates, float64 ``[n, n]``.
        weights: of the updates, float64 ``[n]``.
    """
    lengths = np.sqrt(products.diagonal())
    others = np.maximum(np.outer(lengths, lengths), np.finfo(np.float64).tiny)
    alike = np.divide(products, others, out=others) > _COPY
    alike[2 * alike.sum(axis=1) > len(products)] = False
    others[:] = weights
    others[alike] = 0.0
    np.fill_diagonal(others, 0.0)
    along = np.einsum("ij,ij->i", others, products)
    squares = np.maximum(np.einsum("ij,ij->i", others @ products, others), 0.0)
    far = lengths * np.sqrt(squares)
    found: Numbers = np.clip(np.divide(along, far, out=np.zeros_like(along), where=far > 0), -1.0, 1.0)
    return found


def _scores(kept: Mapping[str, Values]) -> Numbers:
    found: Numbers = (kept["support"] + _PRIOR) / (kept["scale"] + _PRIOR)
    return found


def _shortening(got: Each) -> Numbers:
    """By which each update is multiplied, so that none is longer than the median."""
    lengths = np.sqrt(got.products.diagonal())
    found: Numbers = np.minimum(1.0, np.median(lengths) / np.where(lengths > 0, lengths, 1.0))
    return found


AGGREGATORS = {"reputation": Reputation}
