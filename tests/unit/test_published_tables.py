"""Configs of papers' tables, with what each of their cells changes: a run takes every one. What they reach is measured by the slow tests."""

from __future__ import annotations

from typing import Any

import pytest
import test_fedavg_shards
import test_fedprox_stragglers
import test_niid_bench
import test_personal_cifar10
import test_pfedme_mnist
from cells import TABLES, settings

from fedray.configfile import load_config
from fedray.planning.combinations import check_only

CELLS: dict[str, dict[str, dict[str, Any]]] = {
    "cohort-fraction": {"tenth": {"cohort": {"kind": "fixed", "fraction": 0.1}, "rounds": 40}},
    "fedavg-shards": {name: cell["keys"] for name, cell in test_fedavg_shards.CELLS.items()},
    "fedprox-stragglers": test_fedprox_stragglers.ARMS,
    "niid-mnist": test_niid_bench.ALGORITHMS,
    "niid-cifar10": test_niid_bench.ALGORITHMS,
    "personal-cifar10": test_personal_cifar10.ARMS,
    "pfedme-mnist": test_pfedme_mnist.ARMS,
}


@pytest.mark.parametrize("table", sorted(path.stem for path in TABLES.glob("*.yaml")))
def test_a_run_takes_each_cell_of_a_table(table: str) -> None:
    for keys in CELLS.get(table, {"": {}}).values():
        check_only(load_config(TABLES / f"{table}.yaml", settings(keys)))


def test_each_cell_belongs_to_a_table() -> None:
    assert {f"{table}.yaml" for table in CELLS} <= {path.name for path in TABLES.iterdir()}
