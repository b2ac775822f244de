"""What stands in the cluster for a silo outside it: an actor with the methods of a client's, which asks the silo by way of the gateway.

Pool, rounds, faults and books see an actor as they always do. A cut link is no fault: the order is held and sent again. What is gone
with a silo's process (or after ``clients.unreachable_after``) is reported as :class:`fedray.clients.slots.Gone`, after which the pool
replaces this actor as it would replace a dead one, and the silo begins anew.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray import errors
from fedray.aggregation.each import Rows
from fedray.algorithms.algorithm import make_algorithm
from fedray.clients.messages import (
    ClientReport,
    ClientTask,
    HostInfo,
    Inquiry,
    LocalEvaluation,
    NoisedEvaluation,
    Packed,
    PartialSum,
    RoundTask,
)
from fedray.clients.slots import Gone
from fedray.clients.terms import Terms
from fedray.errors import ConfigError, FedrayError, cause_of
from fedray.exchange import Exchange
from fedray.models.facts import ModelFacts
from fedray.parameters import Vector
from fedray.privacy.account import Decision
from fedray.privacy.figures import Figures
from fedray.silos.calls import CALLS, SiloOpening, pack_call, read_answer
from fedray.silos.certificates import read_gateway_credentials
from fedray.silos.codec import Malformed
from fedray.silos.counter import SiloAway
from fedray.silos.forms import codec
from fedray.silos.gateway import Gateway
from fedray.silos.parcels import Parcel
from fedray.spans import Span

#: Seconds for which a gateway waits for its port, which the gateway of an earlier start may still hold.
_PORT_PATIENCE = 30.0
#: Seconds within which a control call that changes nothing is answered, or given up.
_SOON = 10.0
#: Seconds for which a silo is waited for that has no host yet; who waits for it says when that is too long.
_FOR_EVER = 1e9
_ERRORS = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, FedrayError)}


class SiloGateway:
    """The actor that silos dial, on the driver's node. Ray restarts it; silos dial again, and orders are asked again.

    Args:
        listen: HOST:PORT.
        identity: the federation's directory.
    """

    def __init__(self, listen: str, identity: str) -> None:
        self._gateway = Gateway(listen, partial(read_gateway_credentials, Path(identity)))
        self._fault: FedrayError | None = None
        began = time.monotonic()
        while True:
            try:
                self._gateway.start()
                return
            except FedrayError as error:
                self._fault = error
                if not isinstance(error, ConfigError) or time.monotonic() - began > _PORT_PATIENCE:
                    return  # an exception here would reach the driver as a dead actor, without its type
            self._gateway = Gateway(listen, partial(read_gateway_credentials, Path(identity)))
            time.sleep(0.5)

    async def port(self) -> int:
        """The port that it listens on.

        Raises:
            FedrayError: it does not listen.
        """
        if not self._gateway.port:
            assert self._fault is not None
            raise self._fault
        return self._gateway.port

    async def call(
        self, client: str, order: str, head: bytes, buffers: Sequence[Any], timeout: float, control: bool, within: float | None
    ) -> tuple[bytes, list[Any]]:
        """See :meth:`Gateway.submit`; buffers are arrays of bytes."""
        parcel = Parcel(head, tuple(memoryview(b).cast("B") if len(b) else b"" for b in buffers))
        answer = await asyncio.wrap_future(self._gateway.submit(client, order, parcel, timeout, control, within, hold=not control))
        return answer.head, [np.frombuffer(b, dtype=np.uint8) for b in answer.buffers]

    async def whereabouts(self, client: str) -> str:
        """Whether a silo is there, and why not; a clause."""
        found = self._gateway.silos().get(client)
        if found is None:
            return "has not dialled the gateway yet (its own log says what keeps it)"
        return "loads its records" if found.connected else f"is away: {found.cause}"

    async def release(self, client: str, order: str) -> None:
        """Let the silo forget an answer, which whoever asked has."""
        self._gateway.release(client, order)


class RemoteClient:
    """See the module's text.

    Args:
        gateway: the gateway's actor.
        terms: the run's, for this silo.
        opening: what else the silo is told.
        patience: seconds for which a silo with a host may be away.
    """

    def __init__(self, gateway: Any, terms: Terms, opening: SiloOpening, patience: float) -> None:
        self._gateway, self._terms, self._opening, self._patience = gateway, terms, opening, patience
        self._client, self._session = opening.client, secrets.token_hex(16)
        self._codec = codec(terms.config)
        self._exchange: Exchange | None = None

    def __repr__(self) -> str:
        return f"silo-{self._client.name}"

    # -- control ---------------------------------------------------------------------------------

    def ready(self) -> HostInfo:
        """Have the silo make its host, as soon as it is there; see :meth:`ClientHost.ready`."""
        if self._terms.model is not None:
            self._know(self._terms.model)
        info: HostInfo = self._ask("open", self._terms, self._opening, patience=_FOR_EVER)
        return info

    def configure(self, facts: ModelFacts, exchange: str) -> str:
        """See :meth:`ClientHost.configure`."""
        self._know(facts)
        return str(self._ask("configure", facts, exchange))

    def preflight(self) -> float:
        """See :meth:`ClientHost.preflight`."""
        return float(self._ask("preflight"))

    def consult(self, task: RoundTask, phase: str, messages: Mapping[int, Inquiry]) -> dict[int, bytes | str]:
        """See :meth:`ClientHost.consult`."""
        answers: dict[int, bytes | str] = self._ask("consult", task, phase, dict(messages))
        self._check(set(answers) <= {self._client.index}, "answers for another client")
        return answers

    def whereabouts(self) -> str:
        """Where the silo is, while it is waited for; a clause."""
        found: str = ray.get(self._gateway.whereabouts.remote(self._client.name))
        return found

    def ping(self) -> None:
        """Answer when the silo does; called while other methods work."""
        self._ask("ping", patience=_FOR_EVER)

    def stop_round(self, round_: int) -> None:
        """See :meth:`ClientHost.stop_round`."""
        self._ask("stop_round", round_, within=_SOON)

    def at_work(self) -> Sequence[int]:
        """See :meth:`ClientHost.at_work`."""
        found: list[int] = self._ask("at_work", within=_SOON)
        return found

    def leave(self) -> None:
        """Tell the silo that the run is over, if it is there."""
        self._ask("close", within=_SOON)

    def spans(self) -> list[Span]:
        """See :meth:`ClientHost.spans`."""
        found: list[Span] = self._ask("spans")
        return found

    # -- training --------------------------------------------------------------------------------

    def train(
        self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], shared: None = None, *more: Vector
    ) -> list[ClientReport]:
        """See :meth:`ClientHost.train`."""
        return self._own(clients, self._ask("train", task, weights, clients, None, *more))

    def train_and_hand_over(
        self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask], *more: Vector
    ) -> tuple[list[ClientReport], PartialSum]:
        """See :meth:`ClientHost.train_and_hand_over`."""
        reports, part = self._ask("train_and_hand_over", task, weights, clients, *more)
        return self._own(clients, reports), self._checked(task, part)

    def train_each(self, task: RoundTask, weights: Vector, clients: Sequence[ClientTask]) -> list[Any]:
        """See :meth:`ClientHost.train_each`."""
        reports, segments = self._ask("train_each", task, weights, clients)
        done = sum(report.status == "done" for report in self._own(clients, reports))
        self._check(len(segments) == task.segments and all(rows.count == done for rows in segments), "other updates than its reports say")
        self._check(sum(rows.size for rows in segments) == self._size(task), "updates of another size")
        return [Packed(reports), *segments]

    def collect(self, task: RoundTask) -> PartialSum:
        """See :meth:`ClientHost.collect`."""
        return self._checked(task, self._ask("collect", task))

    def hand_over(self, task: RoundTask) -> tuple[None, PartialSum]:
        """See :meth:`ClientHost.hand_over`."""
        return None, self._checked(task, self._ask("hand_over", task)[1])

    def evaluate(self, weights: Vector, clients: Sequence[ClientTask]) -> list[LocalEvaluation]:
        """See :meth:`ClientHost.evaluate`."""
        found: list[LocalEvaluation] = self._ask("evaluate", weights, clients)
        self._check({one.name for one in found} <= {self._client.name}, "figures of another client")
        return found

    def evaluate_noised(self, weights: Vector, clients: Sequence[ClientTask], round_: int) -> list[NoisedEvaluation]:
        """See :meth:`ClientHost.evaluate_noised`."""
        found: list[NoisedEvaluation] = self._ask("evaluate_noised", weights, clients, round_)
        self._check({one.name for one in found} <= {self._client.name}, "figures of another client")
        return found

    # -- the silo's own book ---------------------------------------------------------------------

    def authorize(self, round_: int, attempt: int) -> Decision:
        """See :meth:`ClientHost.authorize`."""
        decision: Decision = self._ask("authorize", round_, attempt)
        return decision

    def commit(self, round_: int, attempt: int, receipt: Mapping[str, Any] | None) -> None:
        """See :meth:`ClientHost.commit`."""
        self._ask("commit", round_, attempt, None if receipt is None else dict(receipt))

    def spent(self, rounds: int | None = None) -> tuple[Figures, str]:
        """See :meth:`ClientHost.spent`."""
        found: tuple[Figures, str] = self._ask("spent", rounds)
        self._check(found[0].name == self._client.name, "figures of another client")
        return found

    def of_ledger(self, what: str, *arguments: str) -> Any:
        """See :meth:`ClientHost.of_ledger`."""
        return self._ask("of_ledger", what, *arguments)

    def signed_after(self, number: int) -> Sequence[bytes]:
        """See :meth:`ClientHost.signed_after`."""
        found: list[bytes] = self._ask("signed_after", number)
        return found

    # -- inside ----------------------------------------------------------------------------------

    def _ask(self, name: str, *arguments: Any, patience: float | None = None, within: float | None = None) -> Any:
        """Call the silo's method; a gateway that is restarted meanwhile is asked again, for the same order.

        Raises:
            Gone: the silo is away for too long, has no host for this run any more, or does not answer what it was asked.
            FedrayError: what the silo says.
        """
        head, buffers = pack_call(self._codec, name, self._session, arguments)
        order, began = secrets.token_hex(16), time.monotonic()
        limit = self._patience if patience is None else patience
        about = self._client.name, order, head, [np.frombuffer(b, dtype=np.uint8) for b in buffers], limit, CALLS[name].control, within
        while True:
            try:
                answer, came = ray.get(self._gateway.call.remote(*about))
                break
            except RayTaskError as error:
                cause = cause_of(error)
                if isinstance(cause, SiloAway):
                    raise Gone(str(cause)) from None
                raise cause from None
            except RayActorError as error:
                if time.monotonic() - began > (within or limit):
                    raise Gone(f"the gateway does not come back ({errors.first_line(error)})") from None
                time.sleep(0.2)
        if not CALLS[name].control:
            self._gateway.release.remote(self._client.name, order)
        try:
            said, found = read_answer(self._codec, name, answer, [memoryview(b) for b in came])
        except Malformed as error:
            raise self._wrong(f"what is no answer to '{name}' ({error})") from None
        if said == "gone":
            raise Gone(found[1])
        if said == "error":
            kind = _ERRORS.get(found[0], FedrayError)
            raise kind(f"silo '{self._client.name}': {found[1]}")
        return found

    def _know(self, facts: ModelFacts) -> None:
        config = self._terms.config
        self._exchange = make_algorithm(config.algorithm).exchange(facts.layout)
        self._codec = codec(config, largest=4 * self._exchange.up_size + 2**20)

    def _size(self, task: RoundTask) -> int:
        assert self._exchange is not None
        return task.size(self._exchange)

    def _own(self, clients: Sequence[ClientTask], reports: Sequence[ClientReport]) -> list[ClientReport]:
        """Reports, which must be of the clients that were asked."""
        self._check([(r.index, r.name, r.attempt) for r in reports] == [(c.index, c.name, c.attempt) for c in clients], "reports of others")
        return Packed(reports)

    def _checked(self, task: RoundTask, part: PartialSum) -> PartialSum:
        """A part, which must be of this round and of this client alone, and of the round's grid."""
        assert self._exchange is not None
        empty, total = task.empty_part(self._exchange), part.total
        if isinstance(total, Rows) or isinstance(empty, Rows):
            self._check(isinstance(total, Rows) and isinstance(empty, Rows) and total.size == empty.size, "another kind of part")
        else:
            ours, theirs = ((s.bits, s.capacity, s.ones_from, s.ones_bits, len(s.values)) for s in (empty, total))
            self._check(ours == theirs, "a sum of another grid")
        mine = part.round == task.round and part.clients in ([], [self._client.index]) and total.count == len(part.clients)
        self._check(mine and 0 <= total.weight <= task.capacity * (1 + 1e-12), "a part of others")
        return part

    def _check(self, right: bool, what: str) -> None:
        if not right:
            raise self._wrong(what)

    def _wrong(self, what: str) -> Gone:
        """A silo that sends what it should not counts as gone, so that the others' run goes on."""
        return Gone(f"silo '{self._client.name}' sent {what}; its answer is not used")


def start_gateway(listen: str, identity: str) -> Any:
    """Start the gateway on this node; returns its handle.

    Raises:
        FedrayError: it cannot listen.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": _here()}
    gateway = ray.remote(SiloGateway).options(**options).remote(listen, identity)
    try:
        ray.get(gateway.port.remote())
    except RayTaskError as error:
        raise cause_of(error, "the gateway cannot be started") from None
    return gateway


def start_remote(gateway: Any, terms: Terms, opening: SiloOpening, patience: float) -> Any:
    """Start the actor that stands for a silo, on this node; returns its handle at once."""
    options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": _here()}
    return _actor_class().options(**options).remote(gateway, terms, opening, patience)


def part_from(gateway: Any, clients: Sequence[Any]) -> None:
    """Tell silos that the run is over, those that are there, and end the gateway."""
    ray.wait([client.leave.options(concurrency_group="control").remote() for client in clients], num_returns=len(clients), timeout=_SOON)
    ray.kill(gateway)


@cache
def _actor_class() -> Any:
    return ray.remote(concurrency_groups={"control": 2})(RemoteClient)


def _here() -> Any:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
