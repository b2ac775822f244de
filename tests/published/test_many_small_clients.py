"""MNIST cut into 3,383 clients, as many as federated EMNIST has: the settings of a well-known tutorial, and a sampled, longer run beside them.

TensorFlow Federated's tutorial on image classification trains the same five clients for ten rounds at a learning rate of 0.02, and its model is right
for 14 % of EMNIST's test images. What it lacks is no algorithm but clients and rounds. ``configs/emnist*.yaml`` are the same runs on EMNIST by writer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cells import Cell, cell, keep_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def reached(kind: str, real_data: Path) -> Cell:
    """The run, whose curve is kept."""
    table = f"small-clients-{kind}"
    found = cell(table, "seed-1", f"npz:{real_data / 'mnist.npz'}")
    keep_table(table, {"seed 1": {"accuracy": found.last(), "accuracy_by_evaluation": found.accuracies}}, source=__doc__)
    return found


def test_sampled_clients_and_more_rounds_learn_what_five_clients_do_not(real_data: Path) -> None:
    tutorial, sampled = reached("tutorial", real_data), reached("sampled", real_data)
    assert tutorial.last() < 0.65
    assert sampled.last() > 0.85
