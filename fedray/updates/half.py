"""Sixteen bits for each value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from fedray.errors import ConfigError, UpdateRejected
from fedray.parameters import Vector
from fedray.updates.download import Arrays, Coder, Uniform
from fedray.updates.stage import At, Passed, Place, Stage


@dataclass(frozen=True)
class HalfPrecision(Stage, Coder):
    """Round each value to the nearest number of 16 bits, of equally near ones to the even.

    Source: IEEE 754-2008, binary16; Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training

    Attributes:
        format: ``float16`` has 11 significant bits, magnitudes up to 65504, and makes zeros of those below 3e-8; ``bfloat16`` has 8
            significant bits and the range of float32.
    """

    format: Literal["float16", "bfloat16"] = "float16"
    place: ClassVar[Place] = "lossy"

    def out(self, x: Vector, at: At) -> Passed:
        """The rounded values; what is not finite as it came.

        Raises:
            UpdateRejected: a value is larger than the largest number of the format.
        """
        if not np.isfinite(x).all():  # the sum refuses it, or a clip makes zeros of it
            return Passed(x)
        values = torch.tensor(x).to(self._dtype).to(torch.float32).numpy()
        if not np.isfinite(values).all():
            raise UpdateRejected(
                f"compression.format: a value of the update has the magnitude {np.abs(x).max():g}, above the largest number of {self.format}, "
                f"{torch.finfo(self._dtype).max:g}; use compression.format=bfloat16, or a lower learning rate."
            )
        return Passed(values)

    def encode(self, x: Vector, uniform: Uniform) -> Arrays:
        """Two bytes for each value.

        Raises:
            ConfigError: a value is larger than the largest number of the format.
        """
        rounded = torch.tensor(x).to(self._dtype)
        if not rounded.isfinite().all():
            raise ConfigError(
                f"download.format: a value of the model has the magnitude {np.abs(x).max():g}, above the largest number of {self.format}, "
                f"{torch.finfo(self._dtype).max:g}; use download.format=bfloat16."
            )
        return (rounded.view(torch.int16).numpy(),)

    def decode(self, arrays: Arrays, size: int) -> Vector:
        """The rounded values."""
        values: Vector = torch.tensor(arrays[0]).view(self._dtype).to(torch.float32).numpy()
        return values

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.format == "float16" else torch.bfloat16

    def sent(self, size: int, before: int) -> int:
        """Two bytes for each value."""
        return 2 * size


COMPRESSIONS = DOWNLOADS = {"half": HalfPrecision}
