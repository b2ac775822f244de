"""The sentences of a privacy statement about charged evaluations."""

from __future__ import annotations

from typing import Any

from fedray.privacy.accounting import accountant
from fedray.privacy.clientplan import Plan
from fedray.privacy.evaluations import Evaluations
from fedray.privacy.recordplan import RecordPlan
from fedray.rounding import json_figure, rounded_up


def evaluations_in(plan: Plan) -> Evaluations | None:
    """The charged evaluations of a run; None if there are none."""
    return plan.evaluations if isinstance(plan, RecordPlan) else None


def price(plan: Plan, rounds: int) -> dict[str, Any] | None:
    """What the evaluations of so many rounds cost a client at most, as JSON data: their number, noise multiplier, epsilon of them
    alone, and all of it as a clause (``said``); None if there are none."""
    evaluations = evaluations_in(plan)
    if evaluations is None:
        return None
    charges = dict(evaluations.composition(rounds))
    alone = accountant.bound(charges, plan.delta, plan.interval) if charges else 0.0
    number, noise, epsilon = evaluations.count(rounds), evaluations.noise_multiplier, json_figure(alone)
    times = "one evaluation" if number == 1 else f"{number} evaluations"
    said = f"{times} on the clients' held-out records with noise multiplier {noise:g}, which alone would cost epsilon {rounded_up(epsilon)}"
    return {"number": number, "noise_multiplier": noise, "epsilon": epsilon, "said": said}


MECHANISM = (
    "discrete Gaussian noise, exact and added by each client, on integer sums over its held-out records (right or wrong, a cell of the confusion "
    "matrix, the bin of a score, a clipped number); each evaluation is one Gaussian in the ledger, charged in full to every client that is asked, "
    "as if the held-out records were training records"
)


def assumptions() -> list[dict[str, Any]]:
    """What the price of an evaluation assumes, as :func:`fedray.privacy.statement_assumptions.assumptions` gives it."""
    return [
        {
            "assumption": "one held-out record changes an evaluation's sums by at most what their noise is for",
            "holds": True,
            "because": "each record is given to the model and the loss alone, and a contribution above its bound counts as nothing, in exact "
            "arithmetic; a model or loss that keeps something between records gives no answer",
        },
        {
            "assumption": "a client answers an evaluation at most once under a charge",
            "holds": True,
            "because": "the charge is durable before the records are read; a client that fails stays charged and is not asked again, and a "
            "resumed run charges anew",
        },
    ]
