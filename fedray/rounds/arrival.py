"""From the config's ``pacing`` section to what says whose updates make each step: in real or in simulated time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from fedray.clients.groups import ClientGroup
from fedray.config import Config
from fedray.parameters import Values
from fedray.rounds.cohort import largest_cohort
from fedray.rounds.drawing import CohortDraw
from fedray.rounds.flow import Flow
from fedray.rounds.pacing import Schedule
from fedray.rounds.steps import RealRounds, Steps
from fedray.rounds.stragglers import most_passes, straggled
from fedray.rounds.timeline import Timeline, turn_seconds


def make_steps(
    config: Config,
    schedule: Schedule,
    cohorts: CohortDraw,
    names: Sequence[str],
    groups: Sequence[ClientGroup],
    sizes: npt.NDArray[np.int64],
    saved: Mapping[str, Values],
) -> Steps:
    """What says whose updates make each step of a run.

    Args:
        config: the run.
        schedule: of the run.
        cohorts: draws cohorts.
        names: of all clients.
        groups: of clients.
        sizes: the clients' numbers of records.
        saved: arrays of the checkpoint that the run goes on from; empty where it begins.
    """
    size, deadline = largest_cohort(config.cohort, len(names)), config.cohort.deadline
    if config.pacing.arrival == "simulated":
        seconds = turn_seconds(config.pacing, config.seed, groups, sizes)
        return Timeline(schedule, seconds, cohorts, names, config.seed, size, deadline, saved)
    if schedule.carries:
        return Flow(schedule, cohorts, names, config.seed)
    cohorts.load(saved)
    stragglers = config.cohort.stragglers
    if stragglers is None:
        return RealRounds(schedule, cohorts, size, deadline)
    slowed = partial(straggled, stragglers, config.seed, most_passes(groups, len(names)))
    return RealRounds(schedule, cohorts, size, deadline, slowed)
