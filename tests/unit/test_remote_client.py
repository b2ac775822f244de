"""What stands in the cluster for a silo, without a cluster: what it passes on, and what it does with a silo that lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_silo_hosting import NAME, OPENING, TASK, config_of, site_of, terms_of

from fedray.aggregation.exact import ExactSum
from fedray.clients.messages import PartialSum, RoundTask
from fedray.clients.slots import Gone
from fedray.errors import DataError, FedrayError
from fedray.silos import remoteclient
from fedray.silos.calls import pack_answer, read_answer, read_call
from fedray.silos.counter import OrderLost
from fedray.silos.forms import codec
from fedray.silos.hosting import Hosting
from fedray.silos.parcels import Parcel
from fedray.silos.remoteclient import RemoteClient

WEIGHTS = np.zeros(15, dtype=np.float32)
ROUND = RoundTask(0, 150.0, clients=3)
pytestmark = pytest.mark.usefixtures("one_thread")


class Link:
    """A gateway whose silo is in this process; ``lies`` changes an answer of a method on its way."""

    def __init__(self, hosting: Hosting, config: Any) -> None:
        self.hosting, self.lies, self.asked = hosting, dict[str, Callable[[Any], Any]](), list[str]()
        self._wire = codec(config, 2**20)
        self.call, self.release = SimpleNamespace(remote=self._call), SimpleNamespace(remote=lambda *_: None)

    def _call(self, client: str, order: str, head: bytes, buffers: list[Any], limit: float, control: bool, within: float | None) -> Any:
        name = read_call(head, [bytes(b) for b in buffers])[0]
        self.asked.append(name)
        parcel = Parcel(head, tuple(memoryview(bytes(b)) for b in buffers))
        answer = self.hosting.control(order, parcel) if control else self.hosting.handle(order, parcel)
        head, sent = answer.head, list(answer.buffers)
        if name in self.lies:
            head, sent = pack_answer(self._wire, name, self.lies[name](read_answer(self._wire, name, head, sent)[1]))
        return head, [np.frombuffer(b, dtype=np.uint8) for b in sent]


def opened(directory: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> tuple[RemoteClient, Link]:
    monkeypatch.setattr(remoteclient.ray, "get", lambda value: value)
    data = {"source": f"silos:client-0000,{NAME},client-0002", "classes": 3, "holdout": {"fraction": 0.2, "at": "clients"}}
    terms = terms_of(config_of(**{"data": data, "evaluation": {"federated": True}, **sections}))
    link = Link(Hosting(site_of(directory)), terms.config)
    client = RemoteClient(link, terms, OPENING, 30.0)
    assert client.ready().terms == terms.sha256
    return client, link


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteClient, Link]:
    return opened(tmp_path, monkeypatch)


def test_it_asks_the_silo_and_nobody_else(pair: tuple[RemoteClient, Link]) -> None:
    client, link = pair
    reports = client.train(ROUND, WEIGHTS, [TASK])
    none, part = client.hand_over(ROUND)
    assert none is None and [r.status for r in reports] == ["done"] and part.clients == [1]
    again, whole = client.train_and_hand_over(replace(ROUND, round=1), WEIGHTS, [TASK])
    assert [r.status for r in again] == ["done"] and whole.round == 1 and whole.clients == [1]
    assert client.evaluate(WEIGHTS, [TASK])[0].name == NAME
    client.ping(), client.stop_round(0)
    assert client.at_work() == [1]
    assert link.asked == ["open", "train", "hand_over", "train_and_hand_over", "evaluate", "ping", "stop_round", "at_work"]
    client.leave()
    with pytest.raises(Gone, match="no part in this start"):
        client.evaluate(WEIGHTS, [TASK])


def test_single_updates_come_in_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = opened(tmp_path, monkeypatch, aggregation={"kind": "median"})
    reports, *segments = client.train_each(replace(ROUND, collect="each", segments=2), WEIGHTS, [TASK])
    assert [r.status for r in reports] == ["done"] and sum(rows.size for rows in segments) == 15


def changed(part: PartialSum, **other: Any) -> PartialSum:
    assert isinstance(part.total, ExactSum)
    about = {name: value for name, value in other.items() if hasattr(part.total, name) and name != "clients"}
    return replace(part, total=replace(part.total, **about), **{k: v for k, v in other.items() if k not in about})


@pytest.mark.parametrize(
    "lie",
    [
        lambda found: ([found[0][0]._replace(index=2)], found[1]),
        lambda found: ([found[0][0]._replace(name="client-0002")], found[1]),
        lambda found: ([found[0][0]._replace(attempt=1)], found[1]),
        lambda found: ([*found[0], *found[0]], found[1]),
        lambda found: (found[0], changed(found[1], clients=[2])),
        lambda found: (found[0], changed(found[1], clients=[1, 2])),
        lambda found: (found[0], changed(found[1], round=1)),
        lambda found: (found[0], changed(found[1], count=2)),
        lambda found: (found[0], changed(found[1], weight=151.0)),
        lambda found: (found[0], changed(found[1], weight=-1.0)),
        lambda found: (found[0], changed(found[1], weight=float("nan"))),
        lambda found: (found[0], changed(found[1], bits=1)),
        lambda found: (found[0], changed(found[1], capacity=1e9)),
        lambda found: (found[0], changed(found[1], values=np.zeros(16, dtype=np.int64))),
    ],
)
def test_a_silo_that_answers_for_others_or_on_another_grid_counts_as_gone(
    pair: tuple[RemoteClient, Link], lie: Callable[[Any], Any]
) -> None:
    client, link = pair
    link.lies["train_and_hand_over"] = lie
    with pytest.raises(Gone, match="its answer is not used"):
        client.train_and_hand_over(ROUND, WEIGHTS, [TASK])


def test_figures_are_the_silos_own(pair: tuple[RemoteClient, Link]) -> None:
    client, link = pair
    link.lies["evaluate"] = lambda rows: [replace(row, name="client-0002") for row in rows]
    with pytest.raises(Gone, match="another client"):
        client.evaluate(WEIGHTS, [TASK])


def test_errors_of_the_silo_keep_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"silo '{NAME}': "):
        opened(
            tmp_path, monkeypatch, data={"source": f"silos:client-0000,{NAME},client-0002", "classes": 4}, evaluation={"federated": False}
        )


def test_what_is_lost_with_the_silos_process_is_gone_and_other_failures_are_errors(
    pair: tuple[RemoteClient, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = pair

    def failing(error: Exception) -> Callable[[Any], Any]:
        def get(_: Any) -> Any:
            raise remoteclient.RayTaskError("call", "", error)

        return get

    monkeypatch.setattr(remoteclient.ray, "get", failing(OrderLost("the silo was restarted")))
    with pytest.raises(Gone, match="restarted"):
        client.preflight()
    monkeypatch.setattr(remoteclient.ray, "get", failing(FedrayError("no more disk")))
    with pytest.raises(FedrayError, match="no more disk") as raised:
        client.preflight()
    assert not isinstance(raised.value, Gone)
