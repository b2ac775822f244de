"""Aggregation rules that a config names by import path: a median, and rules that lose a part or end their process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedray.aggregation.each import Each
from fedray.aggregation.median import CoordinateMedian
from fedray.aggregation.rule import Memory, Rule
from fedray.parameters import Values, Vector


class Middle(Rule[Each]):
    """The median by NumPy."""

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        found = np.empty(got.size, dtype=np.float32)
        for start, stop, columns in got.blocks():
            found[start:stop] = np.median(columns.astype(np.float64), axis=0)
        return found, {}


@dataclass(frozen=True)
class Losing(CoordinateMedian):
    """The median. In one round the first part cannot be read, as after the loss of its node.

    Attributes:
        mark: path of a file to which the clients of the part are written; the round is the first that does not find it.
    """

    mark: str = ""

    def combine(self, got: Each, kept: Mapping[str, Values]) -> tuple[Vector, Memory]:
        if not Path(self.mark).exists():
            part = got.parts[0]
            Path(self.mark).write_text(" ".join(map(str, part.clients)))
            object.__setattr__(part, "fetch", lambda segment: "its node has left")
        return super().combine(got, kept)
