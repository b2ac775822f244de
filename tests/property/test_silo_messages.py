"""What a run and its silos send each other arrives as it was, and nothing else than what the types say arrives at all."""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_terms import agreed, models, plain

from fedray.aggregation.each import Rows
from fedray.aggregation.exact import ExactSum
from fedray.aggregation.sealed import SealedSum
from fedray.clients.messages import PartialSum
from fedray.clients.terms import Terms
from fedray.configfile import build_config
from fedray.models.facts import ModelFacts
from fedray.privacy.account import Decision, Reservation
from fedray.privacy.accounting.events import Composed, Event, Gaussian, Poisson, SelfComposed
from fedray.privacy.mechanisms.central import Clipped
from fedray.privacy.mechanisms.discrete import Grid
from fedray.privacy.mechanisms.distributed import RingStep
from fedray.privacy.mechanisms.local_noise import GaussianStep, PrivUnitStep
from fedray.secure.ciphertexts import Ciphertexts
from fedray.silos.calls import CALLS, pack_answer, pack_call, pack_words, read_answer, read_call, unpack_arguments
from fedray.silos.codec import Codec, Malformed, written
from fedray.silos.forms import codec
from fedray.updates.norm import NormBound
from fedray.updates.stage import Stage
from fedray.updates.topk import TopK

CONFIG = build_config(
    {
        "name": "wire",
        "rounds": 1,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1},
        "compression": {"kind": "topk", "share": 0.25},
        "bound": {"kind": "norm", "norm": 2.0},
    }
)
WIRE = codec(CONFIG, largest=30)
small = st.integers(0, 9)


@st.composite
def sums(draw: st.DrawFn) -> ExactSum:
    values = draw(hnp.arrays(np.int64, draw(st.integers(0, 30)), elements=st.integers(-(2**63), 2**63 - 1) | st.just(0)))
    ones = draw(st.none() | st.integers(0, 30))
    return ExactSum(values, draw(st.floats(0, 9)), draw(small), draw(st.integers(0, 40)), draw(st.floats(1, 99)), ones, draw(small))


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    size = draw(st.integers(1, 6))
    blocks = draw(st.lists(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(size))), max_size=3))
    return Rows(size, blocks, [1.0] * sum(map(len, blocks)))


@st.composite
def parts(draw: st.DrawFn) -> PartialSum:
    kind, clients, sparse = draw(st.sampled_from(["sum", "rows", "sealed"])), draw(st.lists(small, max_size=3)), draw(st.booleans())
    if kind == "rows":
        return PartialSum(draw(small), draw(rows()), clients)
    total = draw(sums())
    if kind == "sum":
        return PartialSum(draw(small), total, clients, None, sparse, signed=draw(st.binary(max_size=9)))
    sealed = Ciphertexts("bfv", draw(st.binary(max_size=9)), draw(st.lists(st.binary(max_size=9), max_size=3)))
    return PartialSum(draw(small), SealedSum.of(total, sealed), clients, travelled=sealed.nbytes)


gaussians = st.builds(Gaussian, st.floats(0, 99))
events: st.SearchStrategy[Any] = st.one_of(
    gaussians,
    st.builds(Poisson, st.fractions(Fraction(1, 10**6), 1), gaussians),
    st.builds(SelfComposed, of=st.builds(Poisson, st.just(Fraction(1, 3)), gaussians), count=st.integers(1, 99)),
    st.builds(Composed, st.tuples(gaussians, gaussians)),
)
stages = st.one_of(
    st.just(TopK(0.25)),
    st.just(NormBound(2.0)),
    st.builds(Clipped, st.floats(0.1, 9), st.floats(0, 0.1), st.booleans()),
    st.builds(GaussianStep, st.floats(0.1, 9), st.floats(0.1, 9)),
    st.builds(PrivUnitStep, st.floats(0.1, 9), st.floats(0.1, 9)),
    st.just(RingStep(Grid(5, 1.0, 100.0, 24, False, 3, 4, 1.0), "ddg", 7)),
)
SPECIAL: dict[Any, st.SearchStrategy[Any]] = {
    Terms: agreed(),
    ModelFacts: models,
    Event: events,
    PartialSum: parts(),
    Decision: st.builds(
        Decision,
        st.lists(st.text(max_size=3), max_size=2),
        st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2),
        st.dictionaries(st.text(max_size=3), st.builds(Reservation, st.text(max_size=9), st.none() | small), max_size=2),
    ),
    Rows: rows(),
    Stage: stages,
}


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type, by the annotations that the codec reads, too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in SPECIAL:
        return SPECIAL[kind]
    if kind is Any:
        return plain
    if kind in (None, type(None)):
        return st.none()
    if kind is float:
        return st.floats(width=64)
    if kind is int:
        return st.integers(-(2**70), 2**70)
    if kind is str:
        return st.text(max_size=4)
    if kind is bool:
        return st.booleans()
    if kind is bytes:
        return st.binary(max_size=5)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is np.ndarray:
        (scalar,) = typing.get_args(arguments[1])
        return hnp.arrays(np.dtype(scalar), st.integers(0, 5))
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        return st.tuples(*map(of, arguments))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        made = st.lists(of(arguments[0]), max_size=2)
        return made.map(tuple) if origin is tuple else made
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(of(arguments[0]), of(arguments[1]), max_size=2)
    if origin is not None:  # a union
        return st.one_of(*map(of, arguments))
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind._fields
    return st.builds(kind, **{name: of(hints[name]) for name in names})


def shown(value: Any) -> Any:
    """Something by which two values can be compared: arrays by bytes, NaN as itself."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Ciphertexts):
        return shown(value.written())
    if isinstance(value, Terms | ModelFacts):
        return shown(value.document())
    if isinstance(value, ExactSum | Rows) or is_dataclass(value):
        return type(value).__name__, {name: shown(entry) for name, entry in vars(value).items() if name != "travelled"}
    if isinstance(value, tuple | list):
        return [shown(entry) for entry in value]
    if isinstance(value, Mapping):
        return [(shown(key), shown(entry)) for key, entry in value.items()]
    return value


some = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


@pytest.mark.parametrize("name", CALLS)
@some
@given(data=st.data())
def test_a_call_arrives_as_it_was(name: str, data: st.DataObject) -> None:
    call = CALLS[name]
    more = () if call.rest is None else data.draw(st.lists(of(call.rest), max_size=2).map(tuple))
    arguments = (*data.draw(st.tuples(*map(of, call.takes))), *more)
    head, buffers = pack_call(WIRE, name, "s", arguments)
    assert all(type(buffer) in (bytes, memoryview) for buffer in buffers)
    found, session, body, rest = read_call(head, [bytes(b) for b in buffers])
    assert (found, session) == (name, "s")
    assert shown(unpack_arguments(WIRE, name, body, rest)) == shown(arguments)


@pytest.mark.parametrize("name", CALLS)
@some
@given(data=st.data())
def test_an_answer_arrives_as_it_was(name: str, data: st.DataObject) -> None:
    value = data.draw(of(CALLS[name].gives))
    head, buffers = pack_answer(WIRE, name, value)
    said, found = read_answer(WIRE, name, head, [bytes(b) for b in buffers])
    assert said == "answer" and shown(found) == shown(value)


@some
@given(st.sampled_from(["error", "gone"]), st.text(max_size=9), st.text(max_size=9))
def test_words_arrive_as_they_were(said: Literal["error", "gone"], kind: str, text: str) -> None:
    head, buffers = pack_words(said, kind, text)
    assert read_answer(WIRE, "train", head, buffers) == (said, (kind, text))


def test_what_is_too_long_for_a_head_travels_as_bytes() -> None:
    entries = [{"kind": "reserve", "n": n, "pad": "x" * 90} for n in range(9000)]
    head, buffers = pack_answer(WIRE, "of_ledger", {"entries": entries})
    assert len(head) < 100 and len(buffers) == 1
    assert read_answer(WIRE, "of_ledger", head, buffers) == ("answer", {"entries": entries})


def spots(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that lies in JSON data."""
    inner = enumerate(data) if isinstance(data, list) else data.items() if isinstance(data, dict) else ()
    return [at, *(spot for key, entry in inner for spot in spots(entry, (*at, key)))]


def put(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    changed = list(data) if isinstance(data, list) else dict(data)
    changed[at[0]] = put(data[at[0]], at[1:], value)
    return changed


@pytest.mark.parametrize("name", ["train", "train_each", "train_and_hand_over", "consult", "open", "configure", "commit"])
@some
@given(data=st.data())
def test_a_call_that_was_changed_is_refused_or_is_another_call_of_the_same_types(name: str, data: st.DataObject) -> None:
    arguments = data.draw(st.tuples(*map(of, CALLS[name].takes)))
    head, buffers = pack_call(WIRE, name, "s", arguments)
    whole = json.loads(head)
    at = data.draw(st.sampled_from(spots(whole)))
    value = data.draw(plain | st.just({"array": 0, "dtype": "<f8", "shape": [1]}) | st.just({"array": 0, "dtype": "<f4", "shape": [2**39]}))
    try:
        found, session, body, rest = read_call(written(put(whole, at, value)), buffers)
        again = unpack_arguments(WIRE, found, body, rest)
    except Malformed:
        return
    pack_call(WIRE, found, session, again)  # of the types that the method takes, so that it can be packed


@pytest.mark.parametrize("name", CALLS)
@some
@given(body=plain, buffers=st.lists(st.binary(max_size=9), max_size=3))
def test_no_other_error_comes_of_any_message(name: str, body: Any, buffers: list[bytes]) -> None:
    for read in (lambda: unpack_arguments(WIRE, name, body, buffers), lambda: read_answer(WIRE, name, written(body), buffers)):
        with contextlib.suppress(Malformed):
            read()


@some
@given(head=st.binary(max_size=40) | plain.map(written), buffers=st.lists(st.binary(max_size=9), max_size=2))
def test_a_head_is_a_call_or_malformed(head: bytes, buffers: list[bytes]) -> None:
    with pytest.raises(Malformed):
        read_call(head, buffers)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (int, True),
        (int, 1.0),
        (int, "1"),
        (float, True),
        (float, "nan"),
        (str, 1),
        (bool, 1),
        (tuple[int, int], [1]),
        (dict[int, int], [[1, 1], [1, 2]]),
    ],
)
def test_values_are_not_converted(kind: Any, data: Any) -> None:
    with pytest.raises(Malformed):
        Codec().unpack(kind, data)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "<f8"}, {"dtype": "|O"}, {"shape": [3]}, {"shape": [-2]}, {"shape": []}, {"array": 1}, {"array": -1}, {"array": True}],
)
def test_an_array_has_its_dtype_and_its_bytes(change: dict[str, Any]) -> None:
    kind = np.ndarray[Any, np.dtype[np.float32]]
    body, buffers = Codec().pack(kind, np.ones(2, dtype=np.float32))
    assert Codec().unpack(kind, body, buffers).tolist() == [1.0, 1.0]
    with pytest.raises(Malformed):
        Codec().unpack(kind, body | change, buffers)
    with pytest.raises(Malformed, match="nothing refers"):
        Codec().unpack(kind, body, [*buffers, b""])


def test_a_sum_of_few_values_is_no_larger_than_one_may_be() -> None:
    total = ExactSum.zero(31, 1.0)
    body, buffers = WIRE.pack(PartialSum, PartialSum(0, total, [1], None, True))
    with pytest.raises(Malformed, match="31 values"):
        WIRE.unpack(PartialSum, body, buffers)


def test_an_own_stage_is_made_by_the_other_side_from_its_own_terms() -> None:
    body, _ = WIRE.pack(Stage, TopK(0.9))  # what a driver holds does not count
    assert WIRE.unpack(Stage, body) == TopK(0.25)
    with pytest.raises(Malformed):
        codec(CONFIG.model_copy(update={"compression": CONFIG.secure})).unpack(Stage, body)
