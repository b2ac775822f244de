"""Random changes to images in local training: flip, crop, brightness.

Each record's view in a step follows from that record and from draws of its own alone, so one record changes one gradient, as the analysis of
DP-SGD assumes: no view mixes records, and none is an average over several views. The draws are named by seed, round, client and step, and by
the record's place at its client; where privacy is claimed, the seed is one that nobody knows.

Source: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional Neural Networks, section 4.1; He et al. 2016, Deep
Residual Learning for Image Recognition, section 4.2 (pad and crop); De et al. 2022, Unlocking High-Accuracy Differentially Private Image
Classification through Scale (augmentation under DP-SGD)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fedray.choices import Augment
from fedray.config import Training
from fedray.errors import ConfigError
from fedray.rng import generator

#: Draws of a record in a step: for flip, both directions of crop, and brightness.
_DRAWS = 4


@dataclass(frozen=True)
class Augmented:
    """The images of one client as the steps of one training see them.

    Attributes:
        settings: what is changed.
        draws: gives the generator of a step.
    """

    settings: Augment
    draws: Callable[[int], np.random.Generator]

    def __call__(self, x: Tensor, rows: npt.NDArray[np.int64], step: int) -> Tensor:
        """The images of a batch in a step.

        Args:
            x: float ``[b, channels, height, width]``; left as it is.
            rows: the images' places among the client's records, int64 ``[b]``.
            step: number of the step, from 0.

        Returns:
            A tensor of the same shape, dtype and device.
        """
        if not len(rows):
            return x
        # Row by row in one stream: a record's draws depend on its place, not on who else is in the batch.
        drawn = self.draws(step).random((int(rows.max()) + 1, _DRAWS))[rows]
        flipped, down, right, light = torch.from_numpy(drawn).to(x.device, torch.float64 if x.device.type == "cpu" else torch.float32).T
        if self.settings.flip:
            x = torch.where((flipped < 0.5)[:, None, None, None], x.flip(3), x)
        if self.settings.crop:
            x = _moved(x, down, right, self.settings.crop)
        if self.settings.brightness:
            x = x + ((2 * light - 1) * self.settings.brightness).to(x.dtype)[:, None, None, None]
        return x.contiguous()


def augmented(training: Training, seed: int, round_: int, client: int) -> Augmented | None:
    """What changes the images of a client in a round; None where the config does not ask for it.

    Args:
        training: of the client's group.
        seed: of the run, or one that nobody knows where privacy is claimed.
        round_, client: their numbers.
    """
    return None if training.augment is None else Augmented(training.augment, partial(generator, seed, "augment", round_, client))


def _moved(x: Tensor, down: Tensor, right: Tensor, most: int) -> Tensor:
    """Images moved by -most to most pixels in both directions, by draws from [0, 1)."""
    n, channels, height, width = x.shape
    padded = functional.pad(x, [most] * 4)
    top, left = ((draw * (2 * most + 1)).long().clamp(max=2 * most) for draw in (down, right))
    rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
    image = torch.arange(n, device=x.device)[:, None, None, None]
    return padded[image, torch.arange(channels, device=x.device)[None, :, None, None], rows, columns]


def check_augment(training: Training, shape: tuple[int, ...], others: bool, trains: bool) -> None:
    """Check that ``training.augment`` goes with the records and the algorithm.

    Args:
        training: of a group of clients.
        shape: of one record.
        others: records are tokens, or several inputs.
        trains: clients take steps on batches.

    Raises:
        ConfigError: the records are no images, or nothing would be changed.
    """
    if training.augment is None:
        return
    if others or len(shape) != 3:
        raise ConfigError(f"training.augment: changes images [channels, height, width], but a record has shape {shape}; take augment out.")
    if not trains:
        raise ConfigError(
            "training.augment: the clients of this algorithm take no steps on batches, so nothing would be changed; take it out."
        )
    if training.augment.crop >= min(shape[1:]):
        raise ConfigError(
            f"training.augment.crop: {training.augment.crop} would move images of {shape[1]} x {shape[2]} out of sight; lower it."
        )
