"""The model on its way down: what travels, what arrives, and that all clients of a round start from the same bytes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed

from fedray.algorithms.algorithm import make_algorithm
from fedray.choices import Choice
from fedray.errors import ConfigError
from fedray.exchange import Exchange, Field
from fedray.parameters import set_vector
from fedray.planning.combinations import check_only
from fedray.planning.planner import make_plan
from fedray.planning.preparation import prepare
from fedray.privacy.csprng import InsecureSeeded
from fedray.rounds.broadcast import Broadcast
from fedray.updates.download import Coder, Download, PackedGlobals, down_bytes, make_coder
from fedray.updates.half import HalfPrecision
from fedray.updates.qsgd import Qsgd
from fedray.updates.stage import At

CODERS = st.one_of(
    st.builds(HalfPrecision, format=st.sampled_from(["float16", "bfloat16"])),
    st.builds(Qsgd, bits=st.integers(2, 8), block=st.integers(1, 40)),
)
VECTORS = st.integers(1, 100).flatmap(lambda n: st.lists(st.floats(-100, 100, width=32), min_size=n, max_size=n))


@given(coder=CODERS, values=VECTORS, seed=st.integers(0, 5))
def test_what_arrives_is_what_the_stage_of_that_name_makes_in_as_many_bytes_as_it_says(
    coder: HalfPrecision | Qsgd, values: list[float], seed: int
) -> None:
    x = np.array(values, dtype=np.float32)
    arrays = coder.encode(x, InsecureSeeded(seed, 0, 0).uniform)
    assert sum(array.nbytes for array in arrays) == coder.sent(len(x), 4 * len(x))
    arrived = coder.decode(arrays, len(x))
    assert arrived.dtype == np.float32
    assert arrived.tobytes() == coder.out(x, At(0, 0, 0, InsecureSeeded(seed, 0, 0))).values.tobytes()


@given(coder=CODERS, values=VECTORS, rest=st.integers(0, 5), version=st.integers(0, 3))
def test_a_version_is_the_same_bytes_for_everyone_and_after_every_restart(
    coder: Coder, values: list[float], rest: int, version: int
) -> None:
    globals_ = np.concatenate([np.array(values, dtype=np.float32), np.arange(rest, dtype=np.float32) / 3])
    download = Download(coder, len(values), 7)
    packed = download.packed(globals_, version)
    assert isinstance(packed, PackedGlobals)
    arrived = pickle.loads(pickle.dumps(packed))
    again = pickle.loads(pickle.dumps(Download(coder, len(values), 7).packed(globals_.copy(), version)))
    assert arrived.tobytes() == again.tobytes() == packed.whole().tobytes() and not arrived.flags.writeable
    assert arrived[len(values) :].tobytes() == globals_[len(values) :].tobytes()  # other fields of an algorithm go as they are
    model = (Field("model", len(values)), *([Field("variate", rest)] if rest else []))
    assert packed.nbytes == down_bytes(coder, Exchange(model)) and down_bytes(None, Exchange(model)) == globals_.nbytes


def test_levels_are_drawn_anew_for_each_version() -> None:
    globals_, download = np.linspace(-1, 1, 1000, dtype=np.float32), Download(Qsgd(bits=4), 1000, 0)
    drawn = [download.packed(globals_, version) for version in range(50)]
    whole = np.array([one.whole() for one in drawn if isinstance(one, PackedGlobals)])
    assert len({one.tobytes() for one in whole}) == 50
    assert np.abs(whole.mean(0) - globals_).max() < 6 * (1 / 7) / 2 / np.sqrt(50)  # without bias


def test_a_model_that_is_not_finite_goes_as_it_is() -> None:
    globals_ = np.array([1.0, np.nan, 2.0], dtype=np.float32)
    assert Download(Qsgd(), 3, 0).packed(globals_, 0) is globals_


def test_the_driver_keeps_its_model_whole_and_checkpoints_what_clients_received() -> None:
    globals_ = np.linspace(-1, 1, 100, dtype=np.float32)
    sent = Broadcast(0, globals_, download=Download(HalfPrecision(), 100, 0))
    sent.share(0)
    first = pickle.loads(pickle.dumps(sent.newest))
    assert sent.globals is globals_ and sent.whole.tobytes() == globals_.tobytes() != first.tobytes()
    assert sent.sent == 200 and np.abs(first - globals_).max() <= 2.0**-12
    sent.globals = globals_ + np.float32(0.1)
    sent.share(1, needed=[0])
    assert sent.earlier()[0].tobytes() == first.tobytes()
    resumed = Broadcast(1, sent.globals, None, sent.earlier(), Download(HalfPrecision(), 100, 0))
    resumed.share(1, needed=[0])
    assert pickle.loads(pickle.dumps(resumed.versions[0])).tobytes() == first.tobytes()
    assert pickle.loads(pickle.dumps(resumed.newest)).tobytes() == pickle.loads(pickle.dumps(sent.newest)).tobytes()


def accuracy(run: Rehearsed, test: Any) -> float:
    set_vector(run.model, run.layout, run.globals[: run.layout.size])
    import torch

    with torch.no_grad():
        return float((run.model(torch.tensor(test.x)).argmax(1).numpy() == test.y).mean())


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
@pytest.mark.parametrize("download", [{"kind": "half"}, {"kind": "qsgd", "bits": 8}], ids=["half", "qsgd"])
def test_any_split_of_the_clients_gives_the_same_bytes_and_the_server_adds_to_its_whole_model(
    algorithm: str, download: dict[str, Any]
) -> None:
    federation, test = label_skewed()
    config = config_of({"kind": algorithm}, download=download)
    runs = [Rehearsed(config, federation) for _ in range(2)]
    plain = Rehearsed(config_of({"kind": algorithm}), federation)
    for round_ in range(5):
        cohort = [k for k in range(10) if (k + round_) % 5]
        runs[0].train([cohort])
        runs[1].train([cohort[5:], cohort[2:5], cohort[:2]], order=[2, 0, 1])
        plain.train([cohort])
    assert runs[0].globals.tobytes() == runs[1].globals.tobytes() != plain.globals.tobytes()
    model = runs[0].globals[: runs[0].exchange.model_size]
    assert (model != model.astype(np.float16)).mean() > 0.5  # nothing was rounded at the server
    assert abs(accuracy(runs[0], test) - accuracy(plain, test)) <= 0.03


@pytest.mark.parametrize(
    ("download", "words"),
    [
        ({"kind": "none", "bits": 8}, "download.bits: kind is none, so it would do nothing"),
        ({"kind": "qsgd", "bits": 9}, "download.bits: should be from 2 to 8, but is 9; for 16 bits use download.kind=half"),
        ({"kind": "topk"}, "download.kind: 'topk' is not known; use one of half, qsgd"),
        ({"kind": "python:fedray.updates.drive:Drive"}, "is not derived from fedray.updates.download.Coder"),
    ],
)
def test_what_is_no_download_is_refused(download: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config_of({"kind": "fedavg"}, download=download))


def test_a_plan_counts_the_bytes_that_travel() -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}
    configs = [config_of({"kind": "fedavg"}, data=data, download=download) for download in ({"kind": "none"}, {"kind": "half"})]
    plans = [make_plan(prepare(config)) for config in configs]
    whole, half = (plan["traffic"]["down_per_round"] for plan in plans)
    assert whole == 2 * half > 0


def test_a_step_that_is_solved_from_the_very_model_takes_no_coded_one() -> None:
    assert make_algorithm(Choice(kind="newton")).traits.exact
    with pytest.raises(ConfigError, match=r"download.kind: clients of 'newton' send .*use download.kind=none"):
        check_only(config_of({"kind": "newton"}, training={}, download={"kind": "half"}))


def test_a_model_beyond_float16_is_named() -> None:
    coder = make_coder(Choice(kind="half"))
    assert coder is not None
    with pytest.raises(ConfigError, match=r"magnitude 70000, above the largest number of float16, 65504; use download.format=bfloat16"):
        coder.encode(np.array([7e4], dtype=np.float32), np.random.default_rng(0).random)
