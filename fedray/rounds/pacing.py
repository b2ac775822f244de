"""When the model makes a step, and whose updates are in it: the schedules of rounds.

A schedule is a few pure functions. Whether updates arrive in real or in simulated time is none of its concern
(:mod:`fedray.rounds.steps`, :mod:`fedray.rounds.timeline`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedray import components
from fedray.aggregation.exact import FULL
from fedray.config import Cohort, Config
from fedray.errors import ConfigError, blaming
from fedray.exchange import MODEL, Exchange
from fedray.rounds.cohort import largest_cohort
from fedray.traits import Traits, Wants
from fedray.updates.pipeline import keep_state, make_stages


@dataclass(frozen=True)
class Schedule:
    """Who trains when, and when the model makes a step. As it stands it is synchronous rounds; a schedule changes what differs.

    Attributes:
        carries: clients go on training while the model makes steps, so an update may start from an earlier version of the model. Then
            clients start one by one, and ``cohort.kind`` draws nobody.
        selects: which of the clients that train count depends on how fast they are.
    """

    carries: ClassVar[bool] = False
    selects: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Refuse settings that the schedule cannot do anything with.

        Raises:
            ConfigError: with what to change.
        """

    def asked(self, size: int) -> int:
        """Number of clients that are drawn for a round whose cohort should be of ``size``."""
        return size

    def needed(self, version: int, size: int) -> int | None:
        """Number of updates that make the step from ``version`` of the model, counted from 0; None: of all that train for it.

        Args:
            version: see above.
            size: of the cohort that the config asks for.
        """
        return None

    def concurrent(self, version: int) -> int:
        """Number of clients that train at a time while the model has this ``version``, where the schedule ``carries``."""
        return 0

    def factor(self, staleness: int) -> int:
        """By which an update counts whose client started ``staleness`` steps of the model ago, a whole number of 256 up to 256.

        It does not grow with the staleness. An update with 0 does not count at all.
        """
        return FULL


@dataclass(frozen=True)
class Synchronous(Schedule):
    """A step waits for all clients of the round's cohort.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, Algorithm 1
    """


@dataclass(frozen=True)
class SemiSynchronous(Schedule):
    """More clients are asked than are needed, and the first that are done count; the others are told to stop.

    Args:
        over: clients that are asked for each one that counts; ``cohort.size`` is the number that counts.

    Source: Bonawitz et al. 2019, Towards Federated Learning at Scale: System Design, section 2.2
    """

    over: float = 1.3

    selects: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        """Refuse cohorts whose size is not known."""
        if config.cohort.kind != "fixed":
            raise ConfigError(
                f"cohort.kind: a semi-synchronous round counts the first cohort.size clients, which '{config.cohort.kind}' does not have; "
                "use fixed."
            )
        if not 1 < self.over <= 10:
            raise ConfigError(f"pacing.over: should be above 1 and at most 10, but is {self.over:g}; with 1 use pacing.kind=synchronous.")

    def asked(self, size: int) -> int:
        """See :meth:`Schedule.asked`."""
        return math.ceil(size * self.over)

    def needed(self, version: int, size: int) -> int | None:
        """See :meth:`Schedule.needed`."""
        return size


@dataclass(frozen=True)
class FedBuff(Schedule):
    """Clients train all the time, each from the newest model; every ``buffer`` updates make a step. A stale update counts 1 / sqrt(1 + staleness).

    Args:
        buffer: updates of a step.
        concurrency: clients that train at a time.
        most_staleness: largest number of steps made since an update's start with which it counts; null = any.

    Source: Nguyen et al. 2022, Federated Learning with Buffered Asynchronous Aggregation, Algorithm 1
    """

    buffer: int
    concurrency: int
    most_staleness: int | None = None

    carries: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        """Refuse what draws or ends a round's cohort, which there is none of."""
        cohort = config.cohort
        if cohort.kind != "all":
            raise ConfigError(
                f"cohort.kind: '{cohort.kind}' draws a cohort for each round, but here clients start one by one; take it out, and set "
                "pacing.concurrency to the number that should train at a time."
            )
        if cohort.deadline is not None:
            raise ConfigError("cohort.deadline: there is no round that it could end; take it out, and set pacing.most_staleness.")
        for name, value, least in (
            ("buffer", self.buffer, 1),
            ("concurrency", self.concurrency, 1),
            ("most_staleness", self.most_staleness or 0, 0),
        ):
            if value < least:
                raise ConfigError(f"pacing.{name}: should be at least {least}, but is {value}.")
        if cohort.min_clients > self.buffer:
            raise ConfigError(f"cohort.min_clients: {cohort.min_clients} updates cannot come from a pacing.buffer of {self.buffer}.")

    def needed(self, version: int, size: int) -> int | None:
        """See :meth:`Schedule.needed`."""
        return self.buffer

    def concurrent(self, version: int) -> int:
        """See :meth:`Schedule.concurrent`."""
        return self.concurrency

    def factor(self, staleness: int) -> int:
        """See :meth:`Schedule.factor`."""
        if self.most_staleness is not None and staleness > self.most_staleness:
            return 0
        return max(1, round(FULL / math.sqrt(1 + staleness)))


PACINGS = {"synchronous": Synchronous, "semi_synchronous": SemiSynchronous, "fedbuff": FedBuff}


def make_schedule(config: Config) -> Schedule:
    """The schedule of the config's ``pacing`` section.

    Raises:
        ConfigError: unknown schedule, wrong arguments, or settings that it cannot do anything with.
    """
    room, kind = components.PACINGS, config.pacing.kind
    made: object = components.made(room, kind, config.pacing.arguments)
    if not isinstance(made, Schedule):
        raise ConfigError(
            f"{room.path}: '{kind}' made a {type(made).__name__}, which is not derived from fedray.rounds.pacing.Schedule "
            "(docs/schedules.md shows how)."
        )
    with blaming(f"{room.path}: trying '{kind}'"):
        idle = made.factor(0) < 1 or (made.carries and made.concurrent(0) < 1)
    if idle:
        raise ConfigError(f"{room.path}: with '{kind}' no client would train, or no update would count.")
    if made.carries and config.pacing.arrival == "real" and config.evaluation.federated:
        raise ConfigError(
            f"evaluation.federated: with '{kind}' clients train all the time, so there is none to evaluate the model; set it to false, or "
            "pacing.arrival=simulated."
        )
    made.check(config)
    return made


def check_exchange(schedule: Schedule, config: Config, traits: Traits, wants: Wants, exchange: Exchange) -> None:
    """Refuse what clients send or keep if it means nothing beside updates from other versions of the model.

    Raises:
        ConfigError: with what to use instead.
    """
    if schedule.carries and keep_state(make_stages(config)):
        raise ConfigError(
            "compression: its stages keep a state at each client, which does not go with updates from different versions of the model; set "
            "feedback=false, or pacing.kind=synchronous."
        )
    if schedule.carries and wants == "each":
        raise ConfigError(
            f"aggregation.kind: '{config.aggregation.kind}' compares single updates, which here start from different versions of the model; use "
            "mean, or pacing.kind=synchronous."
        )
    if schedule.carries and (traits.state or list(exchange.up) != [MODEL] or list(exchange.down) != [MODEL]):
        raise ConfigError(
            f"algorithm.kind: the clients of '{config.algorithm.kind}' keep or exchange more than the model, which does not go with updates from different "
            "versions of it; use fedavg or fedprox, or pacing.kind=synchronous."
        )


def drawn_cohort(config: Config, schedule: Schedule, clients: int) -> Cohort:
    """The cohort section with the number of clients that are drawn for a round.

    Raises:
        ConfigError: there are not as many clients.
    """
    if schedule.carries:
        least = max(schedule.concurrent(0), schedule.needed(0, 0) or 0)
        if least > clients:
            raise ConfigError(f"pacing: {least} clients that train at a time or make a step are more than the {clients} there are.")
        return config.cohort
    if config.cohort.kind != "fixed":
        return config.cohort
    size = largest_cohort(config.cohort, clients)
    asked = schedule.asked(size)
    if asked == size:
        return config.cohort
    if asked > clients:
        raise ConfigError(f"cohort.size: for {size} clients that count {asked} are asked (pacing), but there are {clients}; take fewer.")
    rest = {name: value for name, value in config.cohort.model_dump().items() if name not in ("size", "fraction")}
    return Cohort.model_validate({**rest, "size": asked})


def most_at_once(config: Config, schedule: Schedule, clients: int) -> int:
    """How many of ``clients`` may be expected to train at a time; in simulated time at most as many as updates make a step."""
    if not schedule.carries:
        return largest_cohort(drawn_cohort(config, schedule, clients), clients)
    return schedule.concurrent(0) if config.pacing.arrival == "real" else schedule.needed(0, clients) or clients
