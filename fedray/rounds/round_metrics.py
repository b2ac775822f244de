"""A round in figures: the metrics of one line, and the privacy figures beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedray.algorithms.serverschedule import server_lr
from fedray.clients.messages import RoundTask
from fedray.clients.pool import RoundLog
from fedray.config import Config
from fedray.privacy.clientplan import ClientPlan, secret_cohorts
from fedray.privacy.figures import Spent, headline, median
from fedray.privacy.recordplan import RecordPlan
from fedray.rounding import as_given, rounded_up
from fedray.rounds.books import Authorization
from fedray.rounds.steps import StepPlan
from fedray.training.schedules import learning_rate


def round_metrics(
    config: Config, number: int, permit: Authorization, log: RoundLog, updates: int, plan: StepPlan, hidden: bool
) -> dict[str, float]:
    """``round/``, ``train/`` metrics of round ``number`` (from 0); ``hidden``: without who and how many took part.

    Training loss appears only where clients send it, which under differential privacy they do not.
    """
    lr = {"train/lr": learning_rate(config.training, number, config.rounds)} if config.training.trains else {}
    if (server := server_lr(config.server, number, config.rounds)) is not None:
        lr["train/server_lr"] = server
    if hidden:
        return {"round/actor_deaths": log.deaths, **lr}
    metrics: dict[str, float] = {
        "round/clients_sampled": len(permit.cohort) + len(permit.refused) + len(permit.away) + len(plan.left),
        "round/clients_completed": updates,
        "round/clients_failed": log.count("failed", "rejected", "lost") + len(permit.away),
        "round/clients_late": log.count("late"),
        "round/clients_refused": len(permit.refused) + log.count("refused", "withdrawn"),
        "round/actor_deaths": log.deaths,
        "round/retries": log.retries,
        **lr,
    }
    if surplus := log.count("surplus"):
        metrics["round/clients_surplus"] = surplus
    if plan.staleness:
        metrics |= {"round/staleness_mean": sum(plan.staleness) / len(plan.staleness), "round/staleness_most": max(plan.staleness)}
    losses = [(r.loss, r.records) for r in log.reports if r.loss is not None]
    if losses:
        metrics["train/loss_mean"] = mean_over_records(losses)
    return metrics


def mean_over_records(values: Sequence[tuple[float, int]]) -> float:
    """The mean of clients' (value, records), weighted by records: the same to the last bit in whatever order they arrived."""
    records = sum(n for _, n in values)
    if not records or not all(math.isfinite(value) for value, _ in values):
        return math.nan
    return math.fsum(value * n for value, n in values) / records


@dataclass(frozen=True, eq=False)
class GuaranteePlan:
    """One guarantee of a run.

    Attributes:
        unit: whom it protects.
        plans: of all clients, or one for each group of them.
        group_of: position of each client's group, ``[clients]``; None where all have one plan.
    """

    unit: str
    plans: Sequence[RecordPlan | ClientPlan]
    group_of: npt.NDArray[np.int32] | None = None

    @property
    def plan(self) -> RecordPlan | ClientPlan:
        """The plan, the first where there are several."""
        return self.plans[0]

    def distinct_plans(self) -> list[RecordPlan | ClientPlan]:
        """All plans, equal ones once."""
        return list(dict.fromkeys(self.plans))

    def expected(self, client: int, steps: int | None, task: RoundTask) -> dict[str, Any]:
        """What a client's receipt must say beside its reservation."""
        plan = self.plan if self.group_of is None else self.plans[self.group_of[client]]
        if isinstance(plan, ClientPlan):
            return task.receipt("client")
        return {
            "plan": plan.sha256,
            "steps": steps or plan.steps,
            "sampling_rate": [plan.sampling_rate.numerator, plan.sampling_rate.denominator],
            "noise_multiplier": plan.noise_multiplier,
            "clip": plan.clip,
            "engine": None,
            **({} if plan.person is None else {"person": plan.person.terms()}),
            **task.receipt(plan.unit),
        }


@dataclass(frozen=True)
class Guarantees:
    """All guarantees of a run, for metrics and sentences; none where nothing is protected."""

    lines: Sequence[GuaranteePlan] = ()

    @property
    def secret(self) -> bool:
        """Whether the clients' own charges tell what must stay secret."""
        return secret_cohorts([plan for line in self.lines for plan in line.distinct_plans()])

    @property
    def hides_cohorts(self) -> bool:
        """Whether the guarantee counts on cohorts staying secret, with which the durations of rounds vary."""
        return any(isinstance(line.plan, ClientPlan) and line.plan.secret for line in self.lines)

    def durations(self, **seconds: float) -> dict[str, float]:
        """``time/`` metrics of a round; none where they would tell of its cohort."""
        return {} if self.hides_cohorts else {f"time/{name}_s": value for name, value in seconds.items()}

    def stamp(self) -> float:
        """When a round's row was made, in seconds since 1970; to the hour where its duration would tell of its cohort."""
        now = time.time()
        return now - now % 3600 if self.hides_cohorts else now

    def metrics(self, groups: Mapping[str, Sequence[Spent]], rounds: int, left_out: int, final: bool) -> dict[str, float]:
        """``privacy/`` metrics of the first line, ``privacy/joint/`` of the second: the headline is the largest subject's epsilon.

        Args:
            groups: of each unit.
            rounds: that were run.
            left_out: clients left out so far because their budget is used up.
            final: this is the run's last row: the figures are those of its summary, on the fine grid.
        """
        metrics: dict[str, float] = {}
        for line, prefix in zip(self.lines, ("privacy", "privacy/joint"), strict=False):
            found = _metrics(line.plan, groups.get(line.unit, ()), rounds, final) | {"clients_exhausted": float(left_out)}
            metrics |= {f"{prefix}/{name}": value for name, value in found.items()}
        return metrics

    def sentence(self, groups: Mapping[str, Sequence[Spent]], eligible: int, needed: int) -> str:
        """Why the run ends before its planned rounds."""
        found = [(line, g.figures) for line in self.lines for g in groups.get(line.unit, ()) if g.figures.exhausted]
        if not found:
            return f"{eligible} clients may still train, cohort.min_clients asks for {max(1, needed)}."
        line, worst = max(found, key=lambda pair: pair[1].epsilon)
        few = "more noise" if line.unit == "client" else "more noise or fewer training.steps"
        return (
            f"the privacy budget is reached: {eligible} clients may still train, cohort.min_clients asks for {max(1, needed)}; "
            f"{worst.name} has spent epsilon {rounded_up(worst.epsilon)} of {as_given(worst.budget)}, and one more round would bring it to "
            f"{rounded_up(worst.next_epsilon)}. {'Raise privacy.budget, or plan' if line.plan.budget is not None else 'Plan'} with {few}."
        )


def _metrics(plan: RecordPlan | ClientPlan, groups: Sequence[Spent], rounds: int, final: bool) -> dict[str, float]:
    figures = [g.figures for g in groups]
    most = headline(groups, plan.adjacency) if final else max((f.epsilon for f in figures), default=0.0)
    metrics = {
        "epsilon": most,
        "epsilon_client_median": min(most, median(groups)),
    }
    rdp = max((f.epsilon_rdp for f in figures), default=0.0)
    if plan.unit != "person" or math.isfinite(rdp):  # Renyi DP does not bound several records of a person
        metrics["epsilon_rdp"] = rdp
    if plan.unit == "client":
        metrics["epsilon_unamplified"] = max((f.epsilon_unamplified or 0.0 for f in figures), default=0.0)
        observers = plan.observers_epsilon(rounds) if isinstance(plan, ClientPlan) else None
        if observers is not None:
            metrics["epsilon_observers"] = observers
    budgets = [f.budget for f in figures if f.budget is not None]  # of the plan, or of the limits of the ledger's folder
    if budgets:
        metrics["budget"] = max(budgets)
        metrics["budget_used"] = metrics["epsilon"] / metrics["budget"]
        metrics["rounds_left"] = float(min((f.rounds_left for f in figures if f.rounds_left is not None), default=0))
    return metrics
