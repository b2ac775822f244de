"""A model whose module, once imported in an actor, makes that actor's receipts say something else than what was reserved."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedray.clients import trainer
from fedray.models.softmax import softmax

_honest = trainer.record_receipt


def forging(input_shape: tuple[int, ...], outputs: int, key: str) -> nn.Module:
    """Factory for ``python:forgedparts:forging``: the receipt's ``key`` is another."""

    def forged(*arguments: Any) -> Any:
        return {**_honest(*arguments), key: "forged"}

    trainer.record_receipt = forged  # type: ignore[attr-defined]
    return softmax(input_shape, outputs)
