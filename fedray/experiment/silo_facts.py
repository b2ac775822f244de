"""What the silos' own actors say of data that nobody else reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedray.clients.messages import HostInfo
from fedray.data.silos import check_silos
from fedray.planning.preparation import (
    Prepared,
    check_sizes,
    make_model,
    no_test_records,
    plan_whole_clients,
    said_of_one_class,
    shown_partition,
)


def complete(p: Prepared, infos: Sequence[HostInfo]) -> None:
    """Add to what was prepared without the silos' records what only they know, and the model that follows from it.

    Args:
        p: prepared.
        infos: what each silo's actor says, in the clients' order.

    Raises:
        ConfigError: records that do not go together, or a model that does not go with them.
    """
    config, classes = p.config, len(p.class_labels) or None
    silos = [info.silo for info in infos if info.silo is not None]
    check_silos(silos, config.data.holdout.fraction, p.test_form)
    if config.evaluation.federated and not any(silo.held_out for silo in silos):
        raise no_test_records()
    p.sizes = np.array([silo.records for silo in silos], dtype=np.int64)
    check_sizes(p.plans, p.groups, p.names, p.sizes)
    p.model = make_model(config, p.groups, p.names, p.sizes, silos[0].shape, classes, silos[0].tokens)
    p.model.columns, p.model.scale = silos[0].columns, silos[0].scale
    told = [info.class_counts for info in infos if info.class_counts is not None]
    counts = np.array(told, dtype=np.int64) if len(told) == len(infos) else None
    p.partition = shown_partition(config, p.names, p.sizes, counts)
    p.warnings += said_of_one_class(counts, p.class_labels)
    p.client_plan = p.client_plan or plan_whole_clients(config, p.groups, len(p.names), p.model.facts.layout.size)


def without_cuda(infos: Mapping[str, HostInfo], with_gpu: Sequence[str]) -> str:
    """What to say where Ray granted a GPU that torch cannot use; ``with_gpu``: the actors that have one. Empty where all is well."""
    blind = [key for key in with_gpu if key in infos and infos[key].device == "cpu"]
    if not blind:
        return ""
    return (
        f"{len(blind)} client actors (first {blind[0]}) have a GPU from Ray, but their torch has no CUDA, so they train on the CPU; "
        "install the torch build for the node's CUDA version."
    )
