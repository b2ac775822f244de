"""What a rule may be told of a round from records that the driver has itself: the public root set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedray.parameters import Vector

if TYPE_CHECKING:
    from fedray.aggregation.each import Each

#: Whether a rule makes use of the root set: never, where there is one, or it does not run without.
RootUse = Literal["no", "may", "must"]


class Root(Protocol):
    """One round, as the driver sees it from its root set."""

    def update(self) -> Vector:
        """What a client with the root set as its records sends in this round, before the config's stages, float32 ``[size]``."""
        ...

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        """The loss on the root set of the model that each update alone would make, float64 ``[got.count]``; infinite where it is no number.

        Raises:
            PartLost: a part of the updates is gone.
        """
        ...
