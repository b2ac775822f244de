"""What is told about a run: the facts at its start, its MLflow parameters and tags, its privacy claim and statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fedray.clients.groups import group_of
from fedray.driver import Loop
from fedray.planning.preparation import Prepared
from fedray.privacy.clientplan import ClientPlan
from fedray.privacy.figures import listed
from fedray.privacy.ledger.chain import EVERYONE
from fedray.privacy.recordplan import RecordPlan
from fedray.privacy.rules import claim
from fedray.privacy.statement import Guarantee, privacy_statement, statement_markdown
from fedray.queriedconstants import queried_from, said_of_queried
from fedray.rounding import rounded_up
from fedray.rounds.agreed import said_of
from fedray.rounds.round_metrics import GuaranteePlan
from fedray.runfiles import RunFiles
from fedray.storage import write_atomic, write_json
from fedray.stores.object_path import Location
from fedray.tracking.mlflow_tracker import flat_params
from fedray.training.evaluate import find_metrics
from fedray.training.metrics import lower_is_better


def guarantee_plans(prepared: Prepared) -> list[GuaranteePlan]:
    """The run's guarantees: for records first, then for whole clients; empty without differential privacy."""
    plans: list[GuaranteePlan] = []
    if prepared.config.privacy.record:
        groups = group_of(prepared.groups, len(prepared.names))
        found = [plan for plan in prepared.plans if plan is not None]
        plans.append(GuaranteePlan(found[0].unit, found, groups))
    return plans if prepared.client_plan is None else [*plans, GuaranteePlan("client", [prepared.client_plan])]


def started(prepared: Prepared, loop: Loop, output: Location, run_id: str) -> dict[str, Any]:
    """Facts about a run whose actors are ready, as JSON data: the ``started`` event, shown at the head of the progress display."""
    config, model, sizes = prepared.config, prepared.model, prepared.sizes
    assert model is not None and sizes is not None
    plan = _first_plan(prepared)
    return {
        "name": config.name,
        "run": run_id,
        "output": str(output),
        "rounds": config.rounds,
        "first_round": loop.first_round,
        "clients": len(loop.names),
        "records": int(sizes.sum()) if config.privacy.whole_clients is None else None,
        "actors": len(loop.pool.slots),
        "placement": config.clients.placement,
        "model": config.model.kind,
        "parameters": model.facts.layout.size,
        "frozen_sha256": model.facts.frozen,
        "engine": model.engine,
        "metric": config.evaluation.headline,
        "lower_is_better": bool(config.evaluation.metrics) and _lower_is_better(config.evaluation.metrics[0]),
        "regime": _regimes(prepared),
        "unit": None if plan is None else _unit(plan),
        "budget": None if plan is None else plan.budget,
        "delta": None if plan is None else plan.delta,
        "noise_multiplier": None if plan is None else plan.noise_multiplier,
        "data": config.data.source,
        "warnings": list(prepared.warnings),
    }


def _lower_is_better(name: str) -> bool:
    return all(lower_is_better(metric) for metric in find_metrics([name]).values())


def tracking_parameters(prepared: Prepared) -> dict[str, str]:
    """The MLflow run's parameters: what the config decides about the training, and the noise multipliers that follow from it."""
    raw = json.loads(prepared.config.model_dump_json(exclude={"ray", "tracking", "experiment"}))
    parameters = flat_params(raw)
    parameters.pop("privacy.insecure_seed", None)
    plans = {"privacy": _first_plan(prepared)}
    if prepared.config.privacy.joint is not None:
        plans["privacy.joint"] = prepared.client_plan
    known = {name: plan for name, plan in plans.items() if plan is not None}
    budgets = {f"{name}.budget": f"{plan.budget:g}" for name, plan in known.items() if plan.budget is not None}
    return parameters | budgets | {f"{name}.noise_multiplier": f"{plan.noise_multiplier:.6g}" for name, plan in known.items()}


def tracking_tags(prepared: Prepared) -> dict[str, str]:
    """The MLflow run's tags at its start."""
    config = prepared.config
    return {
        "fedray.algorithm": config.algorithm.kind,
        "fedray.privacy": _regimes(prepared),
        "fedray.dataset": config.data.source.rpartition("/")[2],
        "fedray.seed": str(config.seed),
        **({} if config.attack.kind == "none" else {"fedray.attack": config.attack.kind}),
        **agreed_tags(prepared, None),
        **initial_tags(prepared),
        **claim_tags(prepared),
    }


def initial_tags(prepared: Prepared) -> dict[str, str]:
    """The MLflow run's tags about the initial model, where another run or a file gives it."""
    model = prepared.model
    if model is None or model.initial is None:
        return {}
    return {"fedray.initial": model.initial.described, "fedray.initial_sha256": model.initial_sha256}


def agreed_tags(prepared: Prepared, summary: Mapping[str, Any] | None) -> dict[str, str]:
    """The MLflow run's tags about the agreed data: the registration's hash, and at the end, with the summary, who was found changed."""
    tags = {} if summary is None else {"fedray.agreed_changed": ", ".join(summary["changed"]) or "none"}
    agreement = next(iter(prepared.agreed.values()), None)
    return tags if agreement is None else tags | {"fedray.agreed": agreement.registration.sha256}


def claim_tags(prepared: Prepared, problems: Sequence[str] = (), summary: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The MLflow run's tags about its privacy claim.

    Args:
        prepared: the run.
        problems: sentences about what voided the claim while the run was running.
        summary: result of :func:`write_statement`, once the run has ended.
    """
    if not prepared.config.privacy.regimes:
        return {"privacy/claim": "none"}
    standing, summary = claim(prepared.config, problems), summary or {}
    return {
        "privacy/claim": "valid" if standing.valid else "void: " + "; ".join(standing.reasons),
        "privacy/unit": " and ".join(_unit(line.plan) for line in guarantee_plans(prepared)) or "client",
        **{f"privacy/{key}": str(summary[key]) for key in ("delta", "accountant", "ledger_sha256") if key in summary},
        **({"privacy/epsilon": rounded_up(summary["epsilon"])} if "epsilon" in summary else {}),
    }


def write_statement(
    prepared: Prepared, loop: Loop, files: RunFiles, own_book: bool, rounds: int, left_out: int, problems: Sequence[str]
) -> dict[str, Any]:
    """Write the privacy statement and this run's entries of books that outlive it.

    Args:
        prepared: the run.
        loop: what the driver's loop used.
        files: the run's files.
        own_book: whether the driver keeps a book itself, and not only the silos.
        rounds: rounds that were run.
        left_out: number of clients that were left out of rounds because their budget was used up.
        problems: sentences about what voided the claim while the run was running.

    Returns:
        The ``privacy`` part of the run's summary, as JSON data.
    """
    config, books = prepared.config, loop.books
    if not config.privacy.regimes:
        return {"unit": None, "regime": "none", "epsilon": None}
    groups = books.view(rounds).groups
    published = books.view(rounds, everyone=True).groups if loop.privacy.secret else groups
    subjects = [EVERYONE, *loop.names]
    guarantees = [
        Guarantee(line.unit, line.distinct_plans(), found, listed(found, subjects), published.get(line.unit, []))
        for line in loop.privacy.lines
        for found in [groups.get(line.unit, [])]
    ]
    heads = books.heads()
    head = next(iter(heads.values())) if len(heads) == 1 and own_book else heads or None
    frozen = "" if prepared.model is None else prepared.model.facts.frozen
    agreed = "" if loop.agreed is None else said_of(loop.agreed.summary())
    queried = queried_from(config.data.normalize.arguments)
    scaled = "" if queried is None else said_of_queried(queried, books.lacking(str(queried.get("run"))))
    initial = None if prepared.model is None else prepared.model.initial
    lacking = None if initial is None or not initial.run else books.lacking(initial.run, (initial.known or {}).get("unit", ""))
    begun = "" if initial is None else initial.said(lacking)
    statement = privacy_statement(config, guarantees, head, rounds, problems, frozen, left_out, agreed, scaled, begun)
    write_json(files.statement, statement)
    for name, part in books.parts().items():
        write_json(files.ledger / f"{quote(name, safe='')}.part.json", part)
    write_atomic(files.root / "privacy_statement.md", statement_markdown(statement).encode())
    return dict(statement["summary"])


def _unit(plan: RecordPlan | ClientPlan) -> str:
    """The protected unit for readers: of a person with the number of its records."""
    return plan.unit if isinstance(plan, ClientPlan) or plan.person is None else f"{plan.person:short}"


def _regimes(prepared: Prepared) -> str:
    return "+".join(prepared.config.privacy.regimes) or "none"


def _first_plan(prepared: Prepared) -> RecordPlan | ClientPlan | None:
    """The plan of the first guarantee: for records where they are protected, else for whole clients."""
    return next((plan for plan in prepared.plans if plan is not None), prepared.client_plan)
