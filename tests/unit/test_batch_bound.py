"""``training.batch_bound``: no client has a batch larger than the smallest client's number of records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rehearsed import config_of

from fedray.errors import ConfigError, PrivacyRefusal
from fedray.planning.batchbound import bounded
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare

SIZES = {"lr": 0.1, "batch_size": 64, "epochs": 1}
FEW = {"source": "sklearn:digits", "partition": {"kind": "quantity", "clients": 10, "power": 1.0}}


def config(training: dict[str, Any] | None = None, **sections: Any) -> Any:
    return config_of({"kind": "fedavg"}, **{"data": FEW, "training": {**SIZES, "batch_bound": "smallest", **(training or {})}, **sections})


def test_the_largest_batch_is_the_smallest_client() -> None:
    prepared = prepare(config())
    assert prepared.sizes is not None
    smallest = int(prepared.sizes.min())
    assert 0 < smallest < 64
    assert prepared.config.training.batch_size == smallest
    assert all(group.training.batch_size == smallest for group in prepared.groups)
    assert any(f"64 is lowered to {smallest}" in said for said in prepared.warnings)
    again = prepare(prepared.config)  # as a resumed run reads it
    assert again.config == prepared.config


def test_groups_are_bounded_by_all_clients() -> None:
    groups = [
        {"name": "large", "clients": 2, "training": {"batch_size": 128}},
        {"name": "small", "clients": 1, "training": {"batch_size": 2}},
    ]
    prepared = prepare(config(clients={"groups": groups}))
    assert prepared.sizes is not None
    smallest = int(prepared.sizes.min())
    assert [group.training.batch_size for group in prepared.groups] == [smallest, 2, smallest]


def test_a_batch_that_fits_stays_and_clients_without_records_bound_nothing() -> None:
    few = config({"batch_size": 3})
    assert bounded(few, np.array([0, 3, 9])) == (few, [])
    lowered, (said,) = bounded(config(), np.array([0, 3, 9]))
    assert lowered.training.batch_size == 3 and said.endswith("lowered to 3, the number of records of the smallest client.")
    free = config_of({"kind": "fedavg"}, data=FEW, training=SIZES)
    assert bounded(free, np.array([1, 2])) == (free, [])


def test_what_has_no_batch_size_or_no_known_clients_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_bound: bounds training\.batch_size"):
        bounded(config({"batch_size": None, "epochs": None, "sampling_rate": 0.1, "steps": 2, "expected_batch": 10.0}), np.array([1, 2]))
    with pytest.raises(ConfigError, match=r"each one alone knows.*set training\.batch_size to it"):
        bounded(config(), None)
    groups = [{"name": "g", "clients": 1, "training": {"batch_bound": "smallest"}}]
    with pytest.raises(ConfigError, match=r"clients\.groups\.0\.training\.batch_bound: the bound is of all clients"):
        bounded(config({"batch_bound": None}, clients={"groups": groups}), np.array([1, 2]))


@pytest.mark.parametrize("regime", ["client", "local", "distributed"])
def test_the_smallest_client_s_size_is_private_where_clients_are_protected(regime: str) -> None:
    privacy = {"regime": regime, "noise_multiplier": 1.0, "delta": 1e-3}
    with pytest.raises(PrivacyRefusal, match="smallest client's private number of records") as caught:
        check_only(
            config_of(
                {"kind": "fedavg", "weights": "uniform"},
                data=FEW,
                training={**SIZES, "batch_bound": "smallest"},
                privacy=privacy,
                cohort={"min_clients": 6},
                evaluation={"metrics": []},
            )
        )
    assert caught.value.code == f"privacy.incompatible.{regime}.batch_bound"
