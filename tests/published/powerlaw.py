"""MNIST as in Li et al. 2020, Federated Optimization in Heterogeneous Networks, section 5.1: clients of two labels each, whose sizes follow a power law."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Parts = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def mnist(file: str, clients: int = 1000, seed: int = 0) -> dict[str, Parts]:
    """Clients ``k`` with labels ``k`` and ``k + 1`` modulo 10, and MNIST's own test set.

    Args:
        file: MNIST as an npz archive.
        clients: a multiple of 10; each has 5 images or more of both labels, and of the others shares that are log-normal with sigma 2.
        seed: of the shares.
    """
    archive, draws = np.load(file), np.random.default_rng(seed)
    x, y = archive["x_train"], archive["y_train"].astype(np.int64)
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in range(10):
        owners = [k for k in range(clients) if label in (k % 10, (k + 1) % 10)]
        rows = draws.permutation(np.flatnonzero(y == label))
        shares = draws.lognormal(0.0, 2.0, len(owners))
        counts = 5 + np.floor(shares / shares.sum() * (len(rows) - 5 * len(owners))).astype(np.int64)
        for owner, part in zip(owners, np.split(rows, np.cumsum(counts)), strict=False):
            parts[owner].append(part)
    dealt = {f"client-{k:04}": np.concatenate(rows) for k, rows in enumerate(parts)}
    return {**{name: (x[rows], y[rows]) for name, rows in dealt.items()}, "test": (archive["x_test"], archive["y_test"].astype(np.int64))}
