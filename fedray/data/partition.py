"""Partitioners, which deal records to clients.

A partitioner is a function ``(labels, groups, draws, **arguments) -> [indices of client 0, of client 1, ...]`` with ``labels`` ``[n]``,
``groups`` the natural clients, int64 ``[n]``, or None, and ``draws`` a keyed generator. Each record goes to at most one client, and every
client gets at least one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fedray.data.records import Indices, Targets, offsets_of
from fedray.errors import DataError

_MAX_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Deal(Sequence[Indices]):
    """Each client's records, as views on one array, so that a million clients need two arrays and not a million.

    Attributes:
        order: indices of records, int64; those of client ``k`` are ``order[offsets[k] : offsets[k + 1]]``.
        offsets: int64 ``[clients + 1]``.
    """

    order: Indices
    offsets: Indices

    @classmethod
    def of(cls, parts: Sequence[Indices]) -> Deal:
        """Join one array of indices per client."""
        return cls(np.concatenate(parts), offsets_of([len(part) for part in parts]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, k: int) -> Indices: ...
    @overload
    def __getitem__(self, k: slice) -> list[Indices]: ...
    def __getitem__(self, k: int | slice) -> Indices | list[Indices]:
        if isinstance(k, slice):
            return [self[i] for i in range(len(self))[k]]
        k = range(len(self))[k]
        return self.order[self.offsets[k] : self.offsets[k + 1]]

    @property
    def sizes(self) -> Indices:
        """Number of records of each client, int64 ``[clients]``."""
        return np.diff(self.offsets)


def iid(
    labels: Targets, groups: Indices | None, draws: np.random.Generator, *, clients: int, records_per_client: int | None = None
) -> Deal:
    """Records shuffled and dealt evenly; sizes differ by at most one.

    Args:
        labels: ``[n]``; only their number matters.
        groups: not used.
        draws: generator.
        clients: how many.
        records_per_client: exactly so many for each client; the records left over belong to nobody.

    Raises:
        DataError: more records asked for than there are.
    """
    n = len(labels)
    _enough(n, clients)
    order = draws.permutation(n)
    if records_per_client is not None:
        wanted = clients * records_per_client
        if records_per_client < 1 or wanted > n:
            raise DataError(
                f"data.partition.records_per_client: {clients} clients with {records_per_client} records each "
                f"need {wanted} records, there are {n}."
            )
        order = order[:wanted]
    return _deal(order, np.full(clients, len(order) // clients) + (np.arange(clients) < len(order) % clients))


def dirichlet(
    labels: Targets,
    groups: Indices | None,
    draws: np.random.Generator,
    *,
    clients: int,
    alpha: float,
    min_records: int = 1,
    balanced: bool = False,
) -> Deal:
    """Label skew: each class is split over the clients in proportions from Dirichlet(alpha).

    Small alpha = each client sees few classes. Drawn anew until every client has ``min_records``.

    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019; balanced: Hsu, Qi, Brown 2019.

    Args:
        labels: int64 classes ``[n]``.
        groups: not used.
        draws: generator.
        clients: how many.
        alpha: concentration, above 0.
        min_records: least records of a client.
        balanced: instead each client gets as many records as any other (at most one more), of classes in its own proportions
            from Dirichlet(alpha times the overall proportions); classes that run out are replaced by what is left.

    Raises:
        DataError: no class labels, or no draw gives every client its least.
    """
    n = len(labels)
    _enough(n, clients)
    if not alpha > 0 or not np.isfinite(alpha):
        raise DataError(f"data.partition.alpha: should be a number above 0, but is {alpha}.")
    if labels.dtype.kind != "i" or labels.ndim > 1:
        what = "this is regression" if labels.ndim == 1 else "each record has several targets"
        raise DataError(f"data.partition.kind: dirichlet needs class labels, but {what}; use iid or quantity.")
    if min_records < 1 or min_records * clients > n:
        raise DataError(
            f"data.partition.min_records: should be at least 1 and at most records / clients = {n // clients}, but is {min_records}."
        )
    pools = [draws.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    if balanced:
        return _dirichlet_balanced(pools, n, clients, alpha, draws)
    totals = np.array([len(p) for p in pools], dtype=np.int64)
    # Fewer draws with very many clients, so that a failure takes seconds and not hours.
    tries = int(np.clip(10**8 // (clients * len(pools)), 10, _MAX_DRAWS))
    for _ in range(tries):
        shares = draws.dirichlet(np.full(clients, alpha), size=len(pools))
        if not np.allclose(shares.sum(axis=1), 1.0):
            continue  # the generator underflows with alpha near zero
        edges = np.round(np.cumsum(shares, axis=1) * totals[:, None]).astype(np.int64)
        edges[:, -1] = totals
        counts = np.diff(edges, axis=1, prepend=0)
        if counts.sum(axis=0).min() >= min_records:
            return _by_counts(pools, counts)
    raise DataError(
        f"data.partition: no draw of {tries} from Dirichlet({alpha:g}) gave each of {clients} clients {min_records} of the {n} records; "
        "raise alpha, lower clients or min_records, or set data.partition.balanced=true."
    )


def shards(labels: Targets, groups: Indices | None, draws: np.random.Generator, *, clients: int, shards_per_client: int = 2) -> Deal:
    """Pathological label skew: records sorted by label, cut into equal shards, each client gets a few.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.

    Args:
        labels: ``[n]``, sorted by value (ties in source order).
        groups: not used.
        draws: generator; decides who gets which shards.
        clients: how many.
        shards_per_client: shards each.

    Raises:
        DataError: more shards than records.
    """
    n = len(labels)
    _enough(n, clients)
    if labels.ndim > 1:
        raise DataError(
            "data.partition.kind: shards sorts records by their label, but each record has several targets; use iid or quantity."
        )
    count = clients * shards_per_client
    if shards_per_client < 1 or count > n:
        raise DataError(
            f"data.partition.shards_per_client: {clients} clients with {shards_per_client} shards each need {count} records, there are {n}."
        )
    edges = np.arange(count + 1) * n // count
    order = np.argsort(labels, kind="stable")
    dealt = draws.permutation(count).reshape(clients, shards_per_client)
    return Deal.of([np.sort(np.concatenate([order[edges[s] : edges[s + 1]] for s in row])) for row in dealt])


def quantity(labels: Targets, groups: Indices | None, draws: np.random.Generator, *, clients: int, power: float = 1.0) -> Deal:
    """Size skew: client k's share is proportional to (k + 1)^-power; records are dealt at random.

    Args:
        labels: ``[n]``; only their number matters.
        groups: not used.
        draws: generator.
        clients: how many; the first is the largest, each has at least one record.
        power: exponent, 0 = equal sizes.

    Raises:
        DataError: fewer records than clients, or a negative power.
    """
    n = len(labels)
    _enough(n, clients)
    if not power >= 0 or not np.isfinite(power):
        raise DataError(f"data.partition.power: should be 0 or more, but is {power}.")
    weights = np.arange(1, clients + 1, dtype=np.float64) ** -power
    return _deal(draws.permutation(n), 1 + apportion(n - clients, weights))


def natural(labels: Targets, groups: Indices | None, draws: np.random.Generator) -> Deal:
    """The clients the data comes with: one file a silo, or a column that names them.

    Raises:
        DataError: the source has no natural clients.
    """
    if groups is None:
        raise DataError(
            "data.partition.kind: this source has no natural clients; name the column that holds them (data.silo, data.clients), "
            "or set data.partition.kind to iid, dirichlet, shards or quantity with data.partition.clients."
        )
    order = np.argsort(groups, kind="stable")
    return _deal(order, np.bincount(groups), sort=False)


def apportion(total: int, weights: npt.NDArray[np.float64]) -> Indices:
    """Split ``total`` in proportion to ``weights`` by largest remainders (ties to the first): int64 of the sum ``total``."""
    quotas = total * (weights / weights.sum())
    parts: Indices = np.floor(quotas).astype(np.int64)
    rest = int(total - parts.sum())
    parts[np.argsort(parts - quotas, kind="stable")[:rest]] += 1
    return parts


def check_parts(parts: Any, n: int, where: str) -> Deal:
    """Check a partitioner's result; returns it with int64 indices.

    Raises:
        DataError: a client without records, a record given twice, or an index that is not a record.
    """
    if not isinstance(parts, Deal):
        try:
            arrays = [np.asarray(part) for part in parts]
        except (TypeError, ValueError):
            arrays = [np.zeros(())]
        if any(a.ndim != 1 or (a.size and a.dtype.kind not in "iu") for a in arrays):
            raise DataError(
                f"{where}: the partitioner should return a list of arrays of whole numbers, the places of each client's records."
            )
        if not arrays:
            raise DataError(f"{where}: the partitioner made no clients.")
        parts = Deal.of([a.astype(np.int64) for a in arrays])
    deal: Deal = parts
    empty = np.flatnonzero(deal.sizes == 0)
    if len(empty):
        raise DataError(f"{where}: client {empty[0]} got no records; use fewer clients.")
    if deal.order.min() < 0 or deal.order.max() >= n or np.bincount(deal.order, minlength=n).max() > 1:
        raise DataError(f"{where}: each of the records 0 to {n - 1} may go to one client only; the partitioner broke that.")
    return deal


def _enough(n: int, clients: int) -> None:
    if clients < 1:
        raise DataError(f"data.partition.clients: should be 1 or more, but is {clients}.")
    if clients > n:
        raise DataError(
            f"data.partition.clients: {clients} clients for {n} training records; every client needs one, use at most {n} clients."
        )


def _deal(order: Indices, sizes: Indices, sort: bool = True) -> Deal:
    """Deal consecutive ranges of ``order``; each is sorted by default, so that gathering the records reads memory in one direction."""
    if sort:
        order = order[np.lexsort((order, np.repeat(np.arange(len(sizes)), sizes)))]
    return Deal(order, offsets_of(sizes))


def _by_counts(pools: list[Indices], counts: Indices) -> Deal:
    """Deal ``counts[c, k]`` records of the class pool ``c`` to client ``k``."""
    owner = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])
    records = np.concatenate(pools)
    order = np.lexsort((records, owner))
    return _deal(records[order], counts.sum(axis=0), sort=False)


def _dirichlet_balanced(pools: list[Indices], n: int, clients: int, alpha: float, draws: np.random.Generator) -> Deal:
    left = np.array([len(p) for p in pools], dtype=np.int64)
    sizes = np.full(clients, n // clients) + (np.arange(clients) < n % clients)
    concentration = np.maximum(alpha * left / n, 1e-12)
    counts = np.zeros((len(pools), clients), dtype=np.int64)
    for k in range(clients):
        shares = draws.dirichlet(concentration)
        need = int(sizes[k])
        while need:
            weights = np.where(left > 0, shares, 0.0)
            # If nothing is left of the client's classes, it takes the remaining classes in proportion.
            weights = weights / weights.sum() if weights.sum() > 0 and np.isfinite(weights).all() else left / left.sum()
            taken = np.minimum(draws.multinomial(need, weights), left)
            counts[:, k] += taken
            left -= taken
            need -= int(taken.sum())
    return _by_counts(pools, counts)


PARTITIONERS = {"iid": iid, "dirichlet": dirichlet, "shards": shards, "quantity": quantity, "natural": natural}
