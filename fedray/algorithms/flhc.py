"""Clusters of clients by the similarity of their updates.

Source: Briggs, Fan, Andras 2020, Federated Learning with Hierarchical Clustering of Local Updates to Improve Training on Non-IID Data (FL+HC),
algorithm 1, with cosine distance and average linkage; Charikar, Chen, Farach-Colton 2002, Finding Frequent Items in Data Streams (the sketch of
an update).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedray.algorithms.algorithm import Mean, Update
from fedray.algorithms.fedavg import FedAvg
from fedray.algorithms.turn import ClientView, Turn
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import Layout, Vector
from fedray.traits import Traits

#: In the field ``cluster``: nobody has a cluster yet, and one who has not been seen before the others got theirs.
_BEFORE, _UNSEEN = -1, -2


@dataclass(frozen=True)
class HierarchicalClusters(FedAvg):
    """FedAvg for some rounds; then the clients fall into clusters by how their updates point, and each cluster goes on with a model of its own.

    With its update each client sends a sketch of its direction, by which the driver knows the cosine distances of all pairs (to about
    1 / sqrt(``sketch``)). After the update of round ``after`` it merges the two nearest clusters, by the mean distance of their clients, as long as
    there are more than ``clusters`` or two are nearer than ``distance``. Who was not there joins the nearest cluster by its first update later,
    which counts for no model. Models are evaluated at the clients, each of which takes its cluster's.

    Source: Briggs et al. 2020, Federated Learning with Hierarchical Clustering of Local Updates.

    Attributes:
        clients: number of clients of the run.
        clusters: largest number of clusters, 2 or more.
        after: rounds of FedAvg, 1 or more; the paper's were 1 to 10.
        distance: mean cosine distance, 0 to 2, below which two clusters are one; 0: there are ``clusters`` of them.
        sketch: values of a sketch.
        traits: a sum tells single clients' sketches, and the server divides by how much weight a cluster has.
    """

    clients: int = field(kw_only=True)
    clusters: int = 2
    after: int = 5
    distance: float = 0.0
    sketch: int = 256
    traits: ClassVar[Traits] = Traits(gradients="adjusted", divides=True, singles=True)

    def __post_init__(self) -> None:
        for name, least in (("clients", 2), ("clusters", 2), ("after", 1), ("sketch", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"algorithm.{name}: {getattr(self, name)} is below {least}; give a whole number that is not.")
        if not 0 <= self.distance <= 2:
            raise ConfigError(f"algorithm.distance: {self.distance} is no cosine distance; give a number from 0 to 2.")

    def check_clients(self, clients: int) -> None:
        """Refuse another number of clients than the fields are made for."""
        if clients != self.clients:
            raise ConfigError(f"algorithm.clients: says {self.clients}, but the run has {clients}; set it to that.")

    def exchange(self, layout: Layout) -> Exchange:
        """All models; each one's share of the clients' weight, and of the clients; the clients' sketches, a row each, and clusters."""
        k, rows = self.clusters, self.clients * self.sketch
        sent = Field("members", k, down=False, weigh="one"), Field("sketches", rows, down=False, weigh="one")
        kept = Field("seen", rows, down=False, up=False), Field("rounds", 1, down=False, up=False)
        share, cluster = Field("share", k, down=False), Field("cluster", self.clients, up=False)
        return Exchange((Field("model", k * layout.size), share, *sent, cluster, *kept))

    def begin(self, layout: Layout, weights: Vector, another: Callable[[int], Vector]) -> dict[str, Vector]:
        """The initial model for every cluster, and nobody in one."""
        return {"model": np.tile(weights, self.clusters), "cluster": np.full(self.clients, _BEFORE, dtype=np.float32)}

    def local(self, turn: Turn) -> Update:
        """Train the cluster's model, or the first where there are no clusters yet."""
        cluster, size = int(turn.globals["cluster"][turn.client]), turn.layout.size
        k = max(cluster, 0)
        turn.train(start=self.measured(turn))
        moved, rows = turn.moved().vector(), np.zeros((self.clients, self.sketch), dtype=np.float32)
        rows[turn.client] = sketched(moved, self.sketch)
        model, one = np.zeros((self.clusters, size), dtype=np.float32), np.zeros(self.clusters, dtype=np.float32)
        if cluster != _UNSEEN:
            model[k], one[k] = moved, 1.0
        return Update({"model": model.ravel(), "share": one, "members": one, "sketches": rows.ravel()})

    def measured(self, client: ClientView) -> Vector:
        """The model of the client's cluster."""
        return np.split(client.globals["model"], self.clusters)[max(int(client.globals["cluster"][client.client]), 0)]

    def server(self, globals_: Mapping[str, Vector], mean: Mean) -> dict[str, Vector]:
        """Each cluster's mean over its own clients, and the clusters."""
        moved, share = mean.values["model"].reshape(self.clusters, -1), mean.values["share"][:, None]
        moved = np.divide(moved, share, out=np.zeros_like(moved), where=share > 0)
        rounds, cluster = int(globals_["rounds"][0]), globals_["cluster"].astype(np.int64)
        seen, came = (part.reshape(self.clients, -1).copy() for part in (globals_["seen"], mean.values["sketches"]))
        there = came.any(axis=1) & (cluster < 0)
        seen[there] = came[there] / np.linalg.norm(came[there], axis=1, keepdims=True)
        if (cluster < 0).all():  # so all models are one
            moved[1:] = moved[0]
            known = seen.any(axis=1)
            if rounds + 1 >= self.after and known.any():
                cluster[~known] = _UNSEEN
                cluster[known] = nearest_merged(_distances(seen[known], seen[known]), self.clusters, self.distance)
        elif there.any():
            means = [_distances(seen[there], seen[cluster == k]).mean(axis=1) for k in range(int(cluster.max()) + 1)]
            cluster[there] = np.argmin(means, axis=0)
        state = {"seen": seen.ravel(), "rounds": np.full(1, rounds + 1, dtype=np.float32)}
        return {"model": moved.ravel(), "cluster": cluster.astype(np.float32), **state}

    def figures(self, mean: Mean) -> dict[str, float]:
        """The number of clients that have trained each model."""
        return {f"round/cluster_{k}_clients": float(round(part * mean.clients)) for k, part in enumerate(mean.values["members"].tolist())}


def sketched(vector: Vector, size: int) -> Vector:
    """The direction of a vector in fewer values: scalar products of such sketches are those of the directions, to about 1 / sqrt(size).

    Args:
        vector: float32 ``[n]``.
        size: values of the sketch.

    Returns:
        float32 ``[size]``; zeros for a vector of zeros.
    """
    bucket, sign = _hashes(len(vector), size)
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    found = np.bincount(bucket, weights=vector * sign, minlength=size)
    return (found / norm if norm > 0 else found).astype(np.float32)


def nearest_merged(distances: npt.NDArray[np.float64], most: int, near: float) -> npt.NDArray[np.int64]:
    """Clusters by merging: the two with the least mean distance become one while there are too many, or these two are near.

    Args:
        distances: of each pair, float64 ``[n, n]``, symmetric.
        most: largest number of clusters.
        near: distance below which two clusters are one.

    Returns:
        Each one's cluster, int64 ``[n]``, numbered in the order in which they first appear.
    """
    between = distances.astype(np.float64).copy()
    np.fill_diagonal(between, np.inf)
    size, label = np.ones(len(between)), np.arange(len(between))
    for left in range(len(between), 1, -1):
        a, b = sorted(int(i) for i in np.unravel_index(np.argmin(between), between.shape))
        if left <= most and between[a, b] >= near:
            break
        merged = (size[a] * between[a] + size[b] * between[b]) / (size[a] + size[b])
        between[a], between[:, a], between[a, a] = merged, merged, np.inf
        between[b], between[:, b] = np.inf, np.inf
        size[a], label[label == b] = size[a] + size[b], a
    first = np.unique(label)  # a cluster is labelled by its first member
    return np.searchsorted(first, label)


def _distances(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosine distances of rows of length 1, float64 ``[len(a), len(b)]``."""
    found: npt.NDArray[np.float64] = 1.0 - a.astype(np.float64) @ b.astype(np.float64).T
    return found


@lru_cache(maxsize=2)
def _hashes(length: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The value of the sketch to which each place goes, and its sign: the same at every client of every run."""
    draws: Any = np.random.Generator(np.random.PCG64([length, size]))
    return draws.integers(0, size, length), draws.choice(np.array([-1, 1], dtype=np.float32), length)


ALGORITHMS = {"flhc": HierarchicalClusters}
