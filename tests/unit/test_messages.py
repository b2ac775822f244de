"""What the driver and the actors send each other."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from fedray.clients.messages import ClientReport, ClientTask, Packed

tasks = st.builds(
    ClientTask,
    st.integers(0, 2**40),
    st.text(max_size=9),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(["record", "client"]), st.text(max_size=9)), max_size=2).map(tuple),
    st.none() | st.integers(1, 99),
    st.integers(0, 3),
)
reports = st.builds(
    ClientReport,
    st.integers(0, 2**40),
    st.text(max_size=9),
    st.sampled_from(["done", "failed", "rejected"]),
    records=st.integers(0, 99),
    seconds=st.floats(0, 9),
    loss=st.none() | st.floats(-9, 9),
    error=st.text(max_size=9),
    receipts=st.dictionaries(st.sampled_from(["record", "client"]), st.dictionaries(st.text(max_size=3), st.integers()), max_size=2),
    physical_batch=st.none() | st.integers(1, 9),
)


@given(st.lists(tasks, max_size=5) | st.lists(reports, max_size=5))
def test_packed_messages_arrive_as_they_were(messages: list[ClientTask] | list[ClientReport]) -> None:
    arrived = pickle.loads(cloudpickle.dumps(Packed(messages)))
    assert arrived == messages
    assert [type(m) for m in arrived] == [type(m) for m in messages]
    assert type(arrived) is list
