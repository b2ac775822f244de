"""What the silos' own actors say of data that nobody else reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedray.clients.messages import HostInfo
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.experiment.preparation import no_test_records


def check_silos(config: Config, names: Sequence[str], infos: Sequence[HostInfo]) -> None:
    """See that what the silos hold goes together: the same features, and test records where they are evaluated on.

    Raises:
        ConfigError: it does not.
    """
    first = infos[0]
    for name, silo in zip(names, infos, strict=True):
        if silo.form != first.form:
            raise ConfigError(
                f"data: clients {names[0]} and {name} have different features ({list(first.columns) or first.shape} and "
                f"{list(silo.columns) or silo.shape}); name them in order with data.features, and declare data.categories."
            )
    if config.evaluation.federated and not any(silo.tested for silo in infos):
        raise no_test_records()


def class_counts(infos: Sequence[HostInfo]) -> npt.NDArray[np.int64] | None:
    """Records of each class at each silo, ``[silos, classes]``; None where they do not say, or in regression."""
    classes = [i.classes for i in infos if i.classes is not None]
    if not classes or any(i.class_counts is None for i in infos):
        return None
    counts = np.zeros((len(infos), max(classes)), dtype=np.int64)
    for row, info in zip(counts, infos, strict=True):
        known = info.class_counts or []
        row[: len(known)] = np.array(known, dtype=np.int64)
    return counts


def without_cuda(infos: Mapping[str, HostInfo], with_gpu: Sequence[str]) -> str:
    """What to say where Ray granted a GPU that torch cannot use; ``with_gpu``: the actors that have one. Empty where all is well."""
    blind = [key for key in with_gpu if key in infos and infos[key].device == "cpu"]
    if not blind:
        return ""
    return (
        f"{len(blind)} client actors (first {blind[0]}) have a GPU from Ray, but their torch has no CUDA, so they train on the CPU; "
        "install the torch build for the node's CUDA version."
    )
