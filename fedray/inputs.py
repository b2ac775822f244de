"""Records with several inputs, such as an image and a row of a table.

A dict of arrays with one first axis becomes one float32 array in which the inputs of a record stand side by side, each flattened. So records
are partitioned, hashed, shared, committed to and batched as one array, and only the model's first step takes them apart again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Whole numbers below this are exact in float32.
MOST_TOKENS = 2**24


@dataclass(frozen=True)
class Input:
    """One input of a record.

    Attributes:
        name: the model's keyword argument.
        shape: shape of one record's array.
        tokens: whether the values are integers (tokens), which the model gets as int64, and float32 otherwise.
    """

    name: str
    shape: tuple[int, ...]
    tokens: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def document(self) -> dict[str, Any]:
        """The input as JSON data."""
        return {"name": self.name, "shape": list(self.shape), "tokens": self.tokens}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Input:
        """The input of :meth:`document`."""
        return cls(document["name"], tuple(document["shape"]), document["tokens"])


def described(inputs: Sequence[Input]) -> str:
    """The inputs in words: ``image (1x8x8), age (1)``."""
    return ", ".join(f"{i.name} ({'x'.join(map(str, i.shape))}{' tokens' if i.tokens else ''})" for i in inputs)
