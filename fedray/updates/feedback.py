"""Error feedback: clients add what a lossy stage did not send to their next update, so that it arrives later and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedray.parameters import Vector
from fedray.updates.stage import At, Passed


def with_feedback(x: Vector, at: At, keep: bool, lossy: Callable[[Vector], Vector]) -> Passed:
    """Let a lossy function work on an update and on what it did not send before; what is not finite stays as it came.

    Args:
        x: the update, float32; unchanged.
        at: where in the run; its state has what was not sent, under ``error``.
        keep: whether the client keeps what is not sent.
        lossy: from the values that should arrive, which are finite, to those that do, float32 of the same shape.

    Source: Karimireddy, Rebjock, Stich & Jaggi 2019, Error Feedback Fixes SignSGD and Other Gradient Compression Schemes, algorithm 2
    """
    error = (at.state or {}).get("error")
    wanted = x if error is None else x + error
    if not np.isfinite(wanted).all():  # the sum refuses it, or a clip makes zeros of it
        return Passed(wanted)
    values = lossy(wanted)
    return Passed(values, {"error": wanted - values} if keep else None)
