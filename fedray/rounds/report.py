"""A round in figures: the metrics of one line, and the privacy figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedray.clients.pool import RoundLog
from fedray.config import Config
from fedray.privacy.record import Figures, RecordPlan
from fedray.rounds.books import Permit
from fedray.training.schedules import learning_rate


def round_metrics(config: Config, number: int, permit: Permit, log: RoundLog, updates: int) -> dict[str, float]:
    """``round/``, ``train/`` metrics of round ``number`` (from 0).

    Training loss appears only where clients send it, which under differential privacy they do not.
    """
    metrics: dict[str, float] = {
        "round/clients_sampled": len(permit.cohort) + len(permit.refused) + len(permit.away),
        "round/clients_completed": updates,
        "round/clients_failed": log.count("failed", "rejected", "lost") + len(permit.away),
        "round/clients_late": log.count("late"),
        "round/clients_refused": len(permit.refused) + log.count("refused"),
        "round/actor_deaths": log.deaths,
        "round/retries": log.retries,
        "train/lr": learning_rate(config.training, number, config.rounds),
    }
    losses = [(r.loss, r.records) for r in log.reports if r.loss is not None]
    if losses:
        values, records = np.array([v for v, _ in losses]), np.array([n for _, n in losses], dtype=np.float64)
        metrics["train/loss_mean"] = float(values @ records / records.sum())
    return metrics


@dataclass(frozen=True)
class Privacy:
    """The record-level plan, for metrics and sentences."""

    plan: RecordPlan

    def metrics(self, figures: Sequence[Figures]) -> dict[str, float]:
        """``privacy/`` metrics: the headline is the largest client's epsilon by PLD."""
        epsilons = np.array([f.epsilon for f in figures]) if figures else np.zeros(1)
        metrics = {
            "privacy/epsilon": float(epsilons.max()),
            "privacy/epsilon_client_median": float(np.median(epsilons)),
            "privacy/epsilon_rdp": max((f.epsilon_rdp for f in figures), default=0.0),
            "privacy/clients_exhausted": float(sum(f.exhausted for f in figures)),
        }
        if self.plan.budget is not None:
            metrics["privacy/budget"] = self.plan.budget
            metrics["privacy/budget_used"] = metrics["privacy/epsilon"] / self.plan.budget
            metrics["privacy/rounds_left"] = float(min((f.rounds_left for f in figures if f.rounds_left is not None), default=0))
        return metrics

    def sentence(self, figures: Sequence[Figures], eligible: int, needed: int) -> str:
        """Why the run ends before its planned rounds."""
        worst = max(figures, key=lambda f: f.epsilon)
        return (
            f"the privacy budget is reached: {eligible} clients may still train, cohort.min_clients asks for {max(1, needed)}; "
            f"{worst.name} has spent epsilon {worst.epsilon:.4g} of {self.plan.budget}, and one more round would cost "
            f"{worst.next_epsilon:.4g}. Raise privacy.budget, or start with more noise or fewer training.steps."
        )
