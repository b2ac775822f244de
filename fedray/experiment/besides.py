"""Starts the actors that work for the driver beside the clients, and what asks the clients themselves beside the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedray.clients.messages import ClientTask
from fedray.clients.pool import Pool
from fedray.planning.preparation import Prepared
from fedray.privacy.evaluationplan import plan_evaluation
from fedray.rounds.agreed import AgreedData
from fedray.rounds.books import Books
from fedray.rounds.evaluator import Evaluators
from fedray.rounds.noisedevaluation import NoisedEvaluations
from fedray.rounds.record import Record
from fedray.rounds.roots import Roots
from fedray.training.noisedmetrics import counted_for


def start_evaluator(p: Prepared, provided: Mapping[str, Any]) -> Evaluators | None:
    """The actor that evaluates the model; None where there is nothing to evaluate, or no model yet."""
    if p.test is None or p.model is None or not p.config.evaluation.metrics:
        return None
    return Evaluators(p.config, p.test, p.model.facts, provided)


def start_roots(p: Prepared, provided: Mapping[str, Any]) -> Roots | None:
    """The actor that trains on the root set; None where there is none, or no model yet."""
    if p.root is None or p.model is None:
        return None
    return Roots(p.config, p.root, p.model.facts, len(p.names), provided)


def noised_evaluations(p: Prepared, pool: Pool, books: Books, record: Record, agreed: AgreedData | None) -> NoisedEvaluations | None:
    """What evaluates at the clients with noise; None where the config does not ask for it."""
    section, trained = p.config.evaluation.charged, next((plan for plan in p.plans if plan is not None), None)
    if section is None or trained is None:
        return None
    metrics, held_out = p.config.evaluation.metrics, p.held_out
    counted = counted_for(metrics, section, len(p.class_labels) or None)
    plan = plan_evaluation(trained, [(one.name, one.size) for one in counted])
    clients = [ClientTask(i, name) for i, name in enumerate(p.names) if held_out is None or held_out[i]]
    patience = 10 * p.config.clients.start_timeout  # records are judged one by one, and what was charged is worth waiting for
    return NoisedEvaluations(plan, counted, metrics, clients, pool, books, record.tell, patience, agreed)
