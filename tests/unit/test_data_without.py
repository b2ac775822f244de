"""Clients that ``data.without`` leaves out: every process reads what it would read of a source that never had them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris

from fedray.clients.groups import make_groups
from fedray.config import Data
from fedray.configfile import build_config
from fedray.data.dataset import client_names, load_client, load_federation
from fedray.errors import ConfigError, DataError

WARDS = ("a", "b", "c", "d")


def table(seed: int) -> pd.DataFrame:
    """Real records (iris), dealt to wards at random, of which each has some."""
    frame = load_iris(as_frame=True).frame
    draws = np.random.default_rng(seed)
    return frame.assign(ward=[*WARDS * 3, *draws.choice(WARDS, len(frame) - 12)])


def section(source: str, **more: Any) -> Data:
    return Data.model_validate({"source": source, "label": "target", "labels": [0, 1, 2], **more})


@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(
    st.integers(0, 99),
    st.sets(st.sampled_from(WARDS), min_size=1, max_size=3),
    st.sampled_from(["driver", "clients"]),
    st.sampled_from(["none", "standardize_client"]),
    st.booleans(),
)
def test_who_is_left_out_of_a_source_was_never_there(
    tmp_path_factory: pytest.TempPathFactory, seed: int, out: set[str], at: str, normalize: str, apart: bool
) -> None:
    """A table with a column of clients, and a folder with a file for each: names, records, held-out records, to the byte."""
    folder, frame = tmp_path_factory.mktemp("data"), table(seed)
    stays = frame[~frame.ward.isin(out)]
    for name, rows in (("all", frame), ("never", stays)):
        (folder / name).mkdir()
        if apart:
            for ward, part in rows.groupby("ward"):
                part.drop(columns="ward").to_csv(folder / name / f"{ward}.csv", index=False)
        else:
            rows.to_csv(folder / name / "table.csv", index=False)
    normalize = "none" if at == "driver" else normalize
    more = {"holdout": {"fraction": 0.3, "at": at}, "normalize": {"kind": normalize}} | ({} if apart else {"silo": "ward"})
    source = "csv:{}" if apart else "csv:{}/table.csv"
    without = section(source.format(folder / "all"), without=sorted(out), **more)
    never = section(source.format(folder / "never"), **more)
    one, other = load_federation(without, seed), load_federation(never, seed)
    assert list(one.names) == list(other.names) == list(client_names(without, seed)) == sorted(set(WARDS) - out)
    for records, expected in ((one.train, other.train), (one.test, other.test), (one.client_test, other.client_test)):
        assert (records is None) == (expected is None)
        if records is not None and expected is not None:
            assert records.x.tobytes() == expected.x.tobytes() and records.y.tobytes() == expected.y.tobytes()
    for name in one.names:
        assert load_client(without, seed, name).train.x.tobytes() == load_client(never, seed, name).train.x.tobytes()
    for name in out:
        with pytest.raises(DataError, match=f"no client '{name}'"):
            load_client(without, seed, name)


@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(st.integers(0, 99), st.sets(st.integers(0, 5), min_size=1, max_size=4))
def test_the_others_keep_what_a_partition_deals_them(seed: int, out: set[int]) -> None:
    names = [f"client-{k:04d}" for k in range(6)]
    more = {"partition": {"kind": "dirichlet", "clients": 6, "alpha": 1.0}}
    whole = load_federation(Data.model_validate({"source": "sklearn:iris", **more}), seed)
    left = load_federation(Data.model_validate({"source": "sklearn:iris", "without": [names[k] for k in sorted(out)], **more}), seed)
    assert list(left.names) == [name for k, name in enumerate(names) if k not in out]
    for k, name in enumerate(left.names):
        assert left.client(k).train.x.tobytes() == whole.client(names.index(name)).train.x.tobytes()
    assert left.test is not None and whole.test is not None and left.test.x.tobytes() == whole.test.x.tobytes()


def test_what_cannot_be_as_if_it_had_never_been_is_refused(tmp_path: Path) -> None:
    frame = table(0)
    frame.loc[frame.target == 2, "ward"] = "d"
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = {"source": f"csv:{tmp_path}/table.csv", "label": "target", "silo": "ward"}
    with pytest.raises(ConfigError, match="class '2' is in no record that stays"):
        load_federation(Data.model_validate({**data, "without": ["d"]}), 0)
    with pytest.raises(ConfigError, match="there is no client 'e'"):
        load_federation(Data.model_validate({**data, "without": ["e"]}), 0)
    with pytest.raises(ConfigError, match="leaves no client"):
        load_federation(Data.model_validate({**data, "without": list(WARDS)}), 0)


def test_groups_by_name_lose_who_is_left_out_and_groups_by_number_are_refused() -> None:
    def config(clients: Any) -> Any:
        return build_config(
            {
                "name": "groups",
                "rounds": 1,
                "data": {"source": "sklearn:iris", "partition": {"kind": "iid", "clients": 4}, "without": ["client-0001"]},
                "model": {"kind": "softmax"},
                "clients": {"groups": [{"name": "slow", "clients": clients, "training": {"lr": 0.5}}]},
                "training": {"lr": 0.1, "batch_size": 4, "epochs": 1},
            }
        )

    names = ["client-0000", "client-0002", "client-0003"]
    slow, rest = make_groups(config(["client-0001", "client-0003"]), names)
    assert list(slow.members) == [2] and list(rest.members) == [0, 1]
    assert [group.name for group in make_groups(config(["client-0001"]), names)] == ["default"]
    with pytest.raises(ConfigError, match="give the names"):
        make_groups(config(2), names)
