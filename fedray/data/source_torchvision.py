"""Image classification sets of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.components import nearest
from fedray.data.images import Channels, channels_first
from fedray.data.records import Label
from fedray.data.source import Raw, Source, Whole, build
from fedray.errors import ConfigError, DataError


def torchvision(
    where: str,
    *,
    root: str = "data",
    download: bool = False,
    channels: Channels = "auto",
    classes: int | None = None,
    labels: Sequence[Label] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """An image set of torchvision.datasets (MNIST, CIFAR10, EMNIST, ...); needs ``pip install 'fedray[torchvision]'``.

    Its training and test part are both used. Images become float32 in 0..1, ``[channels, height, width]``.

    Args:
        where: name of the class in ``torchvision.datasets``.
        root: folder with the files.
        download: fetch the files into ``root`` if they are not there.
        channels: where the images have their channel axis: first, last, none, or auto.
        classes: labels are the integers 0..classes-1 and stay what they are; null = as the set itself names its classes.
        labels: the labels in class order, instead of classes.
        options: further arguments of the class, e.g. ``{split: byclass}`` for EMNIST.

    Raises:
        ConfigError: torchvision is not installed.
        DataError: no such set, files not there, or not a set of images with one label each.
    """

    def load() -> Raw:
        try:
            from torchvision import datasets
        except ModuleNotFoundError:
            raise ConfigError("data.source: torchvision is not installed; run pip install 'fedray[torchvision]'.") from None
        name = f"torchvision:{where}"
        kind = getattr(datasets, where, None)
        if not inspect.isclass(kind):
            names = [n for n, v in vars(datasets).items() if inspect.isclass(v)]
            raise DataError(f"data.source: torchvision has no data set '{where}'.{nearest(where, names)}")
        parts: list[tuple[Any, Any]] = []
        own: list[str] | None = None
        for is_train in (True, False):
            opened = _open(kind, is_train, {"root": root, "download": download, **(options or {})}, name)
            x, y = _arrays(opened, name)
            parts.append((channels_first(x, channels, name), y))
            own = own or _class_names(opened)
        if classes is not None or labels is not None:
            own = None
        return build(
            name,
            *parts[0],
            test=parts[1],
            classes=len(own) if own is not None else classes,
            labels=labels,
            class_labels=own,
        )

    return Whole(load)


def _class_names(opened: Any) -> list[str] | None:
    """The classes as the set itself names them; None where it does not."""
    names = getattr(opened, "classes", None)
    return [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 1 else None


def _open(kind: Any, is_train: bool, arguments: dict[str, Any], name: str) -> Any:
    known = inspect.signature(kind).parameters
    if "train" in known:
        arguments["train"] = is_train
    elif "split" in known:
        arguments["split"] = "train" if is_train else "test"
    else:
        raise DataError(f"{name}: has no training and test part; write a python: source for it.")
    try:
        return kind(**arguments)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{name}: cannot be opened in '{arguments['root']}' ({error}); check data.root, or set data.download=true."
        ) from None


def _arrays(opened: Any, name: str) -> tuple[Any, Any]:
    """Image and label arrays; sets without them in memory are read image by image."""
    images = getattr(opened, "data", None)
    labels = getattr(opened, "targets", None)
    if labels is None:
        labels = getattr(opened, "labels", None)
    if images is not None and labels is not None:
        return np.asarray(images), np.asarray(labels)
    rows, targets = [], []
    for image, target in opened:
        pixels = np.asarray(image)
        rows.append(pixels if pixels.ndim == 3 else pixels[:, :, None])
        targets.append(target)
        if pixels.dtype != np.uint8 or rows[-1].shape != rows[0].shape:
            raise DataError(f"{name}: its images are not of one size and 8 bits a channel; write a python: source that makes them so.")
    if not rows:
        raise DataError(f"{name}: holds no records.")
    return np.stack(rows), np.asarray(targets)


SOURCES = {"torchvision": torchvision}
