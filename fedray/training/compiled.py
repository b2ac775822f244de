"""Models that torch has compiled, or that hold parts which it has.

Compiled code calls no hooks and shows no layers, so private engines run a model as it was written. Its parameters are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def as_written() -> Iterator[None]:
    """While it lasts, what ``torch.compile`` has made runs as it was written. Costs nothing where nothing was compiled."""
    if "torch._dynamo.eval_frame" not in sys.modules:  # torch.compile imports it
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
