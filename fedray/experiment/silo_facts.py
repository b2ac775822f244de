"""Uses what the silos' own actors report about records that only they can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedray.clients.messages import HostInfo
from fedray.data.datanotes import said_of_dropped
from fedray.data.silos import check_silos
from fedray.planning.global_model import RecordFacts
from fedray.planning.preparation import Prepared, no_test_records, with_records


def complete(prepared: Prepared, infos: Sequence[HostInfo]) -> Prepared:
    """Add what only the silos know, and the model that follows from it, to a run that was prepared without their records.

    Args:
        prepared: the run.
        infos: the report of each silo's actor, in the clients' order.

    Raises:
        ConfigError: the model does not go with the records, or no client holds test records for federated evaluation.
        DataError: the silos' records do not go together.
    """
    config = prepared.config
    silos = [info.silo for info in infos if info.silo is not None]
    check_silos(silos, config.data.holdout.fraction, prepared.test_form)
    if config.evaluation.federated and not any(silo.held_out for silo in silos):
        raise no_test_records()
    first, sizes = silos[0], np.array([silo.records for silo in silos], dtype=np.int64)
    reported = [info.class_counts for info in infos if info.class_counts is not None]
    counts = np.array(reported, dtype=np.int64) if len(reported) == len(infos) else None
    classes, persons = len(prepared.class_labels) or None, [silo.persons for silo in silos if silo.persons is not None]
    facts = RecordFacts(sizes, first.shape, classes, first.tokens, first.columns, first.scale, first.inputs, first.target_shape, counts)
    known = np.array(persons, dtype=np.int64) if len(persons) == len(silos) else None
    held_out = np.array([silo.held_out for silo in silos], dtype=np.int64)
    left_out = said_of_dropped(sum(silo.dropped for silo in silos), sum(silo.records + silo.held_out for silo in silos))
    prepared = replace(prepared, warnings=[*prepared.warnings, *left_out])
    return with_records(prepared, replace(facts, persons=known, held_out=held_out if held_out.any() else None))


def without_cuda(infos: Mapping[str, HostInfo], with_gpu: Sequence[str]) -> str:
    """Return a warning if torch cannot use a GPU that Ray granted; empty if it can.

    Args:
        infos: each actor's report, by the actor's key.
        with_gpu: keys of the actors that were granted a GPU.
    """
    blind = [key for key in with_gpu if key in infos and infos[key].device == "cpu"]
    if not blind:
        return ""
    return (
        f"{len(blind)} client actors (first {blind[0]}) have a GPU from Ray, but their torch has no CUDA, so they train on the CPU; "
        "install the torch build for the node's CUDA version."
    )
