"""CIFAR-10 at ten clients, dealt at random and two classes each, with and without record-level privacy: the curves of 50 rounds.

Without privacy a run takes about half an hour on two cores, with it an hour and a half.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cells import cell, keep_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]


def reached(name: str, real_data: Path) -> float:
    """Mean accuracy of the last five rounds; the curve is kept."""
    table = f"cifar10-{name}"
    found = cell(table, "seed-0", f"parquet:{real_data}")
    figures = {"accuracy": found.last(5), "accuracy_by_round": found.accuracies}
    figures |= {"epsilon": found.result.summary["privacy"]["epsilon"]} if "private" in name else {}
    keep_table(table, {"seed 0": figures}, source=__doc__)
    return found.last(5)


def test_two_classes_a_client_cost_accuracy(real_data: Path) -> None:
    assert reached("iid", real_data) > reached("two-classes", real_data) + 0.02


def test_privacy_costs_accuracy(real_data: Path) -> None:
    assert 0.2 < reached("iid-private", real_data) < reached("iid", real_data)


def test_privacy_and_two_classes_a_client(real_data: Path) -> None:
    assert 0.1 < reached("two-classes-private", real_data) < reached("two-classes", real_data)
