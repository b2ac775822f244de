"""Records that follow a proportional hazards model, for tests of survival."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: What the logarithm of the hazard is made of.
EFFECTS = np.array([1.2, -0.8, 0.5, 0.0])


def survivors(n: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Columns u0 to u3, event and time: exponential times of hazard exp(u EFFECTS), censored at others; rounded, so that some are equal.

    Args:
        n: records.
        seed: of the draws.
        shift: of the first feature, by which silos differ.
    """
    draws = np.random.default_rng(seed)
    u = draws.normal(size=(n, 4)) + np.array([shift, 0, 0, 0])
    happens, leaves = draws.exponential(np.exp(-u @ EFFECTS)), draws.exponential(2.0, n)
    frame = pd.DataFrame({f"u{k}": u[:, k] for k in range(4)})
    return frame.assign(event=(happens <= leaves).astype(int), time=np.minimum(happens, leaves).round(2))
