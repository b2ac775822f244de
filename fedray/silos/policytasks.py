"""What a silo objects to in a single order of a run that it takes part in: whatever goes beyond the run's terms, or asks for it twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from fedray.aggregation.exact import FULL
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.states import StateAddress
from fedray.clients.terms import Terms
from fedray.components import is_own
from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.events import Composition
from fedray.privacy.clientplan import ClientPlan, Plan
from fedray.privacy.release import Release
from fedray.rounding import rounded_up
from fedray.rounds.pacing import make_schedule
from fedray.secure.protocol import make_protocol
from fedray.silos.objection import Objection, contradiction, object_to
from fedray.silos.policy import when
from fedray.silos.policyconfig import Policy
from fedray.silos.spending import Spending, joined
from fedray.updates.pipeline import make_stages
from fedray.updates.stage import Stage

#: Name of a file of states, as silos themselves name them; nothing else is opened.
_STATE = re.compile(r"^\d{6}-[0-9a-f]{32}\.state$")
#: How often a physical batch may be halved; no batch of today's machines is larger than this many doublings of one record.
_HALVINGS = 40
_SEGMENTS = 1 << 16
#: A run's name stands in the log, and on the operator's terminal.
_JOB = re.compile(r"^[!-~]{1,200}$")
#: Clients of a federation of silos; a driver cannot have memory taken by naming more.
_CLIENTS = 1_000_000

Key = tuple[int, int]


@dataclass
class Remembered:
    """What a silo remembers of a run.

    Attributes:
        begun: (round, attempt) of the last training that was begun, from its charge on.
        trained: of the last one that trained.
        evaluated: the last round after which held-out records were evaluated.
        capacity, clients: of the round's sums, which stay the same.
        index: by which the run knows this client.
    """

    begun: Key = (-1, 0)
    trained: Key = (-1, 0)
    evaluated: int = -1
    capacity: float | None = None
    clients: int | None = None
    index: int | None = None
    states: set[StateAddress] = field(default_factory=set)

    def starts(self, key: Key) -> bool:
        """Whether a training is a new one, and not that whose charge was made."""
        return key != self.begun or self.trained >= key


def check_task(
    policy: Policy,
    terms: Terms,
    task: RoundTask,
    client: ClientTask,
    course: Remembered,
    rounds_today: int,
    now: datetime,
    plan: ClientPlan | None = None,
) -> Objection | None:
    """The first objection to training a client in a round; None where it may.

    Args:
        policy: the silo's.
        terms: the run's.
        task, client: of the order.
        course: what the silo remembers of the run.
        rounds_today: trainings that were begun today.
        now: the time.
        plan: for whole clients, as the silo has computed it; None where they are not protected.
    """
    carries = _carries(terms)
    key = key_of(task, client)
    return (
        _of_round(terms, task.round, client.attempt)
        or check_terms_of(terms, task, course, plan)
        or _of_client(terms, task, client, course, carries)
        or _twice(key, course, carries)
        or (next(when(policy, now, rounds_today), None) if course.starts(key) else None)
    )


def key_of(task: RoundTask, client: ClientTask) -> Key:
    """By what a training is known, and charged: the version of the model that it starts from, and how often that was tried before."""
    return task.round if client.version is None else client.version, client.attempt


def _carries(terms: Terms) -> bool:
    """Whether clients go on while the model makes steps; a schedule of the driver's own code, which is not run here, is taken not to."""
    return not is_own(terms.config.pacing.kind) and make_schedule(terms.config).carries


def _of_round(terms: Terms, round_: int, attempt: int) -> Objection | None:
    config = terms.config
    if not 0 <= round_ < config.rounds:
        return contradiction("round", round_, f"round {round_ + 1} is asked for, and the run's terms have {config.rounds} rounds")
    most = 2 * config.cohort.retries + 1  # those of a secure sum, and of an actor that died
    if not 0 <= attempt <= most:
        return contradiction(
            "attempt", attempt, f"attempt {attempt + 1} at a round is asked for, and the run's terms have at most {most + 1}"
        )
    return None


def check_charge(
    policy: Policy, terms: Terms, round_: int, attempt: int, course: Remembered, rounds_today: int, now: datetime
) -> Objection | None:
    """The first objection to charging a round to the silo's ledger; None where it may."""
    found = _of_round(terms, round_, attempt)
    if found is not None:
        return found
    if (round_, attempt) < course.begun or (round_, attempt) <= course.trained:  # a silo that died before it trained is asked again
        return contradiction("round", round_, _again((round_, attempt), max(course.begun, course.trained)))
    return next(when(policy, now, rounds_today), None)


def _again(key: Key, last: Key) -> str:
    return f"round {key[0] + 1}, attempt {key[1] + 1}, was done or is over (the last one was round {last[0] + 1}, attempt {last[1] + 1})"


def _twice(key: Key, course: Remembered, carries: bool) -> Objection | None:
    """An order that was done before, or belongs to a round that is over. Where clients carry on over rounds, two may start from one version."""
    if carries:
        return contradiction("round", key[0], _again(key, course.trained)) if key < course.trained else None
    if key <= course.trained or key < course.begun:
        return contradiction("round", key[0], _again(key, max(course.begun, course.trained)))
    return None


def check_terms_of(terms: Terms, task: RoundTask, course: Remembered, plan: ClientPlan | None) -> Objection | None:
    """The first objection to what a task says for all clients of a round: it must follow from the run's terms, and stay as it was."""
    config, protocol = terms.config, make_protocol(terms.config.secure)
    if course.capacity is not None and task.capacity != course.capacity:
        return contradiction("capacity", task.capacity, f"sums were laid out for {course.capacity:g}, and now for {task.capacity:g}")
    if course.clients is not None and task.clients != course.clients:
        return contradiction("clients", task.clients, f"the run had {course.clients} clients, and now has {task.clients}")
    if protocol is not None and task.clients < config.cohort.min_clients:
        return contradiction(
            "clients", task.clients, f"a secure sum of {config.cohort.min_clients} or more is agreed, of {task.clients} clients"
        )
    if task.plan != (None if plan is None else plan.sha256):
        return contradiction("plan", task.plan, "the plan for whole clients is another one than follows from the run's config")
    wanted = None if protocol is None else protocol.terms()
    if (None if task.secure is None else dict(task.secure)) != wanted:
        return contradiction("secure", task.secure, "the protocol's constants are others than the run's config has")
    if protocol is not None and task.collect != "sum":
        return contradiction("collect", task.collect, "each update by itself is asked for, and the run's terms have a secure sum")
    if not 1 <= task.segments <= _SEGMENTS:
        return contradiction("segments", task.segments, f"{task.segments} segments are asked for")
    return _of_stages(terms, task, plan)


def _of_stages(terms: Terms, task: RoundTask, plan: ClientPlan | None) -> Objection | None:
    expected = expected_stages(terms, task, plan)
    ours, theirs = ([(type(s).__name__, s.place, s.terms()) for s in stages] for stages in (expected, task.stages))
    if ours == theirs:
        return None
    names = [", ".join(name for name, *_ in stages) or "none" for stages in (theirs, ours)]
    if names[0] == names[1]:
        names = [str([said for *_, said in stages]) for stages in (theirs, ours)]
    return contradiction("stages", names[0], f"an update is to pass {names[0]}, and the run's config says {names[1]}")


def expected_stages(terms: Terms, task: RoundTask, plan: ClientPlan | None) -> tuple[Stage, ...]:
    """What an update passes by the run's config. Where the clip norm adapts, which only the driver's own noise relies on, it is the task's."""
    own = make_stages(terms.config)
    if plan is None:
        return own
    release = Release(plan, stages=own)
    if plan.adaptive is not None:
        clips = [s.terms().get("clip") for s in task.stages if s.place == "linear"]
        release.clip = next((float(c) for c in clips if isinstance(c, float) and c > 0), release.clip)
    return release.stages(task.round)


def _of_client(terms: Terms, task: RoundTask, client: ClientTask, course: Remembered, carries: bool) -> Objection | None:
    training, stragglers = terms.config.training, terms.config.cohort.stragglers
    if course.index is not None and client.index != course.index:
        return contradiction("index", client.index, f"this client is number {course.index} of the run, and now number {client.index}")
    if client.steps is not None and not 1 <= client.steps <= (terms.plan.steps if terms.plan is not None else 0):
        most = "which has no plan of steps" if terms.plan is None else f"whose plan has {terms.plan.steps}"
        return contradiction("steps", client.steps, f"{client.steps} local steps are asked for in a run {most}")
    if client.epochs is not None and not (stragglers is not None and 1 <= client.epochs <= (training.epochs or 0)):
        return contradiction("epochs", client.epochs, f"{client.epochs} passes are asked for, and the run's terms have {training.epochs}")
    if not 0 <= client.halvings <= _HALVINGS:
        return contradiction("halvings", client.halvings, f"batches are to be halved {client.halvings} times")
    weighed = carries or terms.config.cohort.kind not in ("all", "poisson", "fixed", "cyclic")
    if not (0 < client.factor <= FULL if weighed else client.factor == FULL):
        return contradiction("factor", client.factor, f"the update is to count {client.factor}/{FULL}")
    if client.version is not None and not (0 <= client.version <= task.round if carries else client.version == task.round):
        return contradiction(
            "version", client.version, f"the client is to start from version {client.version} of the model in round {task.round + 1}"
        )
    if task.behind:
        return contradiction("behind", task.behind, "how far an update is behind is the client's own affair to say")
    return None


def _own_state(state: StateAddress) -> bool:
    return bool(_STATE.match(state.file)) and state.offset >= 0 and 0 < state.size < 1 << 40


def affordable(policy: Policy, plan: Plan, spent: Spending, more: Composition) -> Objection | None:
    """The objection to one more charge to the silo's ledger; None where both of the policy's limits allow it."""
    for rule, charges, whose in (
        ("epsilon_run", joined(spent.run, more), "this run"),
        ("epsilon_total", joined(spent.run, spent.others, more), "all runs together"),
    ):
        limit: Any = getattr(policy, rule)
        if limit is None or not accountant.affordable(dict(charges), plan.delta, limit, accountant.INTERVAL, plan.adjacency):
            figure = rounded_up(accountant.bound(dict(charges), plan.delta, accountant.INTERVAL, plan.adjacency))
            allowed = "none" if limit is None else f"at most {limit:g}"
            change = f"with one more charge {whose} would come to it, so this silo takes no further part"
            return object_to(policy, rule, "epsilon", figure, allowed, change)
    return None


def check_opening(job: str, clients: int, index: int) -> Objection | None:
    """The objection to a run whose name or number of clients is none."""
    if not _JOB.match(job):
        return contradiction("job", repr(job), "a run's name in ledgers has up to 200 printable characters")
    if not 0 <= index < clients <= _CLIENTS:
        return contradiction("clients", clients, f"this silo would be number {index} of {clients} clients")
    return None


def check_cohort(clients: Sequence[ClientTask], name: str) -> Objection | None:
    """The objection to an order that is not for this silo's one client, once."""
    if len(clients) != 1 or clients[0].name != name:
        names = ", ".join(client.name for client in clients) or "nobody"
        return contradiction("clients", names, f"an order for {names} came to '{name}'")
    state = clients[0].state
    if state is not None and not _own_state(state):
        return contradiction("state", state.file, "a state is to be read from a file that is none of this silo's states")
    return None


def check_globals(vectors: Sequence[Any], size: int | None) -> Objection | None:
    """The objection to globals that are no vectors of the run's model; ``size``: of one, where it is known."""
    for values in vectors:
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 1:
            return contradiction("weights", type(values).__name__, "the globals are no vector of float32")
        if size is not None and len(values) != size:
            return contradiction("weights", len(values), f"{len(values)} values came, and the run's model takes {size}")
    return None
