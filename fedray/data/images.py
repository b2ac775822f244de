"""Decodes images, and moves the channel axis of image arrays to the front."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedray.errors import DataError

Channels = Literal["auto", "first", "last", "none"]


def decode_images(encoded: Sequence[bytes | None], where: str) -> npt.NDArray[np.uint8]:
    """Decode PNG, JPEG, ... files to uint8 ``[n, channels, height, width]`` (a view of an NHWC array).

    All images must have the size of the first, which also decides the channels: one for a grey image, else three.

    Raises:
        DataError: an image is missing, broken or of another size; the sentence names the record.
    """
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise DataError(f"{where}: holds no records.")
    out: npt.NDArray[np.uint8] | None = None
    mode = ""
    for i, content in enumerate(encoded):
        if content is None:
            raise DataError(f"{where}: record {i + 1} has no image.")
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{where}: image {i + 1} has more than 8 bits a channel (mode {image.mode}), which would be cut off; scale such "
                        "images to 8 bits, or give them as float32 arrays by an npz: or python: source."
                    )
                if mode == "L" and image.mode not in ("L", "1", "LA"):
                    raise DataError(f"{where}: image {i + 1} has colours (mode {image.mode}), the first is grey; make them one kind.")
                if out is None:
                    mode = "L" if image.mode in ("L", "1") else "RGB"
                    out = np.empty((len(encoded), image.height, image.width, 1 if mode == "L" else 3), dtype=np.uint8)
                if (image.height, image.width) != out.shape[1:3]:
                    raise DataError(
                        f"{where}: image {i + 1} is {image.width}x{image.height}, the first "
                        f"{out.shape[2]}x{out.shape[1]}; resize them to one size."
                    )
                converted = image if image.mode == mode else image.convert(mode)
                out[i] = np.frombuffer(converted.tobytes(), dtype=np.uint8).reshape(out.shape[1:])
        except UnidentifiedImageError:
            raise DataError(
                f"{where}: image {i + 1} cannot be decoded, it is in no known format; of a table with a column of bytes, name the features in data.features."
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{where}: image {i + 1} cannot be decoded ({error}).") from None
    assert out is not None  # `encoded` is not empty
    return np.moveaxis(out, 3, 1)


def channels_first(x: npt.NDArray[Any], channels: Channels, where: str) -> npt.NDArray[Any]:
    """Return a view of ``x`` in which the channel axis is the first axis of each record.

    Args:
        x: ``[n, ...]``.
        channels: position of the channel axis: first, last, none (an axis is added), or auto: uint8 ``[n, h, w]`` has none; with four axes
            the first or last axis of a record with 1, 3 or 4 entries; any other array is returned as it is.
        where: the source, for messages.

    Raises:
        DataError: auto cannot decide, or the array has too few axes for the setting.
    """
    if channels == "auto":
        channels = _guess(x, where)
    if channels == "first":
        return x
    needed = 3 if channels == "none" else 4
    if x.ndim != needed:
        raise DataError(f"{where}: data.channels={channels} needs arrays with {needed} axes, but this one has shape {x.shape}.")
    return x[:, None] if channels == "none" else np.moveaxis(x, 3, 1)


def _guess(x: npt.NDArray[Any], where: str) -> Channels:
    if x.ndim == 3 and x.dtype == np.uint8:
        return "none"
    if x.ndim != 4:
        return "first"
    first, last = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
    if first == last:
        raise DataError(f"{where}: cannot tell which axis of shape {x.shape} holds the channels; set data.channels to first or last.")
    return "first" if first else "last"
