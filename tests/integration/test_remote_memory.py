"""Under a secure sum no process of the cluster ever holds one silo's update: not the driver, nor what stands for the silo, nor the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memoryscan import Needles, memory
from processes import actors
from remotesilos import silos
from test_remote_silos import AGREED, DIGITS, NAMES, PLAIN, SECURE, outside
from test_secure_memory import windows

from fedray.aggregation.exact import ExactSum
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.groups import make_groups
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.config import Data
from fedray.configfile import build_config
from fedray.models.facts import first_model
from fedray.parameters import get_vector

CLUSTER = ("ray::Experiment", "ray::RemoteClient", "ray::SiloGateway")


def first_updates() -> dict[str, Any]:
    """What each silo adds to the sum of the first round, before any mask, int64; trained here, where all data are."""
    data = {**DIGITS, **AGREED}
    config = build_config({"name": "plain", "rounds": 2, "data": data, "model": {"kind": "softmax"}, **PLAIN})
    model, facts = first_model(config.model, (64,), 10, config.seed)
    exchange = make_algorithm(config.algorithm).exchange(facts.layout)
    terms = make_terms(config, make_groups(config, NAMES)[0], None, facts, exchange.sha256)
    hosts = {n: ClientHost(terms, Site(data=Data.model_validate(data), client=ClientTask(n, NAMES[n]))) for n in range(len(NAMES))}
    infos = [host.ready() for host in hosts.values()]
    task = RoundTask(0, float(sum(info.silo.records for info in infos if info.silo is not None)), clients=len(NAMES))
    found = {}
    for n, host in hosts.items():
        total = host.train_and_hand_over(task, get_vector(model, facts.layout), [ClientTask(n, NAMES[n])])[1].total
        assert isinstance(total, ExactSum)
        found[NAMES[n]] = total.values
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "secure"])
def test_a_single_update_is_in_no_process_of_the_cluster(tmp_path: Path, secure: bool) -> None:
    updates = first_updates()
    total = sum(updates.values())
    wanted = {f"{name}.{k}": part for name, values in updates.items() for k, part in enumerate(windows(values.tobytes()))}
    needles, sums = Needles(wanted), Needles({"sum": windows(np.asarray(total).tobytes(), 1)[0]})
    seen, summed = set[str](), set[str]()

    def listen(kind: str, value: Any) -> None:
        if kind == "row":
            for title in CLUSTER:
                for process in actors(title):
                    seen.update(needles.found(memory(process.pid)))
                    summed.update(sums.found(memory(process.pid)))

    sections = {**PLAIN, "evaluation": {"metrics": []}, **(SECURE if secure else {})}
    with silos(tmp_path, dict.fromkeys(NAMES, DIGITS)) as those:
        result = outside(tmp_path / "run", NAMES, 10, those, (listen,), **sections)
    assert result.status == "completed"
    assert summed == {"sum"}  # which shows that the looking finds what is there
    assert (not seen) if secure else {name.split(".")[0] for name in seen} == set(NAMES)
