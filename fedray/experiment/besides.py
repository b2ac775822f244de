"""Starts the actors that work for the driver beside the clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedray.planning.preparation import Prepared
from fedray.rounds.evaluator import Evaluators
from fedray.rounds.roots import Roots


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
