"""Records with an image and a row of a table, for tests: their class needs both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def records(n: int, seed: int, words: bool = False) -> tuple[dict[str, Any], Any]:
    """An image uint8 [n, 1, 4, 4] and numbers [n, 3]; the class is whether the image's left half is brighter, or not where the first number is
    below zero. With ``words`` also tokens [n, 2].
    """
    draws = np.random.default_rng(seed)
    image, table = draws.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8), draws.normal(size=(n, 3))
    image[:, :, :, :2] //= np.where(draws.random(n) < 0.5, 4, 1).astype(np.uint8)[:, None, None, None]
    brighter = image[:, 0, :, :2].mean((1, 2)) > image[:, 0, :, 2:].mean((1, 2))
    x: dict[str, Any] = {"table": table, "image": image}
    if words:
        x["words"] = draws.integers(0, 7, (n, 2))
    return x, (brighter ^ (table[:, 0] < 0)).astype(int)


def clients(*, classes: int = 2, words: bool = False) -> dict[str, Any]:
    """Three clients and the driver's test set."""
    return {f"c{k}": records(n, k, words) for k, n in enumerate((60, 90, 75))} | {"test": records(200, 9, words)}


class Silos:
    """The same clients, each read where it lives."""

    classes = 2

    def clients(self) -> list[str]:
        return ["c0", "c1", "c2"]

    def load(self, client: str) -> Any:
        return clients()[client]

    def test(self) -> Any:
        return clients()["test"]


class Net(nn.Module):
    """Takes the inputs by name, and words where there are some."""

    def __init__(self, input_shape: dict[str, tuple[int, ...]], outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape["image"][0], 4, 3, padding=1)
        self.words = nn.Embedding(7, 4) if "words" in input_shape else None
        self.mix = nn.Linear(4 * 16 + 3 + (8 if self.words is not None else 0), 16)
        self.out = nn.Linear(16, outputs)

    def forward(self, image: Tensor, table: Tensor, words: Tensor | None = None) -> Tensor:
        parts = [self.conv(image).relu().flatten(1), table]
        if self.words is not None and words is not None:
            parts.append(self.words(words).flatten(1))
        outputs: Tensor = self.out(self.mix(torch.cat(parts, dim=1)).relu())
        return outputs
