"""MNIST as in Dinh, Tran, Nguyen 2020, Personalized Federated Learning with Moreau Envelopes, section 5.1: 20 clients of two labels and unequal sizes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Parts = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def mnist(file: str, clients: int = 20, seed: int = 0) -> dict[str, Parts]:
    """Clients ``k`` with labels ``k`` and ``k + 1`` modulo 10, which share all 70,000 images; each pixel standardised over these.

    Args:
        file: MNIST as an npz archive.
        clients: a multiple of 10; an owner of a label takes a share of what the owners before left of it: between one over the number of owners
            and one, and a half, of which the last takes what is left.
        seed: of the shares.
    """
    archive, draws = np.load(file), np.random.default_rng(seed)
    x = np.concatenate([archive["x_train"], archive["x_test"]]).reshape(-1, 784).astype(np.float32)
    y = np.concatenate([archive["y_train"], archive["y_test"]]).astype(np.int64)
    x = (x - x.mean(0)) / (x.std(0) + np.float32(0.001))
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in range(10):
        owners = [k for k in range(clients) if label in (k % 10, (k + 1) % 10)]
        rows = draws.permutation(np.flatnonzero(y == label))
        for owner in owners[:-1]:
            taken = int(len(rows) * draws.uniform(1 / (len(owners) + 1), 0.5))
            parts[owner].append(rows[:taken])
            rows = rows[taken:]
        parts[owners[-1]].append(rows)
    dealt = {f"client-{k:02}": np.concatenate(rows) for k, rows in enumerate(parts)}
    return {name: (x[rows], y[rows]) for name, rows in dealt.items()}
