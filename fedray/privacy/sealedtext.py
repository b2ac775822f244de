"""What the privacy statement of a sealed sweep says: what was released, to whom the figure applies, and what tells of the other trials.

Source: Papernot & Steinke 2022, Hyperparameter Tuning with Renyi Differential Privacy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedray.privacy.accounting.repetition import Repetitions
from fedray.rounding import rounded_up

RELEASED = (
    "the best trial's final model, its settings and its score on the driver's test records, which the config declares public; nothing else of "
    "this trial, and nothing of any other trial, not even how many there were"
)
AGAINST = (
    "everyone who sees what the sweep released, but not whoever runs the cluster or can read its memory, disks or logs: there, every trial is seen, "
    "and the cost is that of the composition of all trials, whose number is secret"
)
NOT_COVERED = (
    "the time that the sweep took and the load of the cluster meanwhile: whoever watches them learns how many trials there were",
    "Ray's logs and temporary files on the cluster's nodes, and the private folder in which the trials lay until the sweep ended",
    "a choice among this sweep and other runs by their results on private records, unless all are charged to the same lasting ledger",
)
ENFORCED = (
    "the one charge was durable before any trial began; every update of a trial carries a receipt that was checked before the update was added, and "
    "the charges of each trial were compared with what the one charge covers before anything was released"
)
CONDITIONS = (
    "each trial's settings are drawn independently of the data and of the other trials, with replacement",
    "the number of trials is drawn by a cryptographic generator, independently of the data, and stays secret",
    "a trial that was interrupted is begun anew, and one that fails counts as the worst",
)


def sealed_statement(statement: Mapping[str, Any], repetitions: Repetitions) -> dict[str, Any]:
    """The statement of a sealed sweep.

    Args:
        statement: from :func:`fedray.privacy.statement.privacy_statement`, with the figures of the sweep's one charge, and the plans of all
            trials that could be drawn.
        repetitions: the distribution of the number of trials.
    """
    first, *others = [_line(line, repetitions) for line in (statement, *statement["joint"])]
    summary = first["summary"]
    summary["statement"] = " ".join(line["guarantee"]["statement"] for line in (first, *others))
    if others:
        summary["joint"] = others[0]["summary"]
    scope = str(statement["ledger"]["scope"]).replace("this run alone", "this sweep alone")
    return {
        **statement,
        **first,
        "joint": others,
        "tuning": f"Accounted for: {_number(repetitions)} Only the best trial was released, and the figure covers the choice.",
        "ledger": {**statement["ledger"], "scope": scope},
    }


def _line(line: Mapping[str, Any], repetitions: Repetitions) -> dict[str, Any]:
    summary = {**line["summary"], "accountant": "rdp", "sealed": {"mean": repetitions.mean, "shape": repetitions.shape}}
    guarantee, accounting = dict(line["guarantee"]), dict(line["accounting"])
    unit, shown = summary["unit"], rounded_up(summary["epsilon"])
    whose = {"client": "every client with all its records", "person": "every person with all its records in one client"}.get(
        unit, "every single record of every client"
    )
    guarantee |= {
        "statement": f"The best of a secret number of trainings was released, which was ({shown}, {summary['delta']!r})-differentially private for "
        f"{whose}: the model, settings and score that were released would have been almost as likely without it.",
        "against": AGAINST,
        "released": RELEASED,
        "not_covered": [*NOT_COVERED, *(text for text in guarantee["not_covered"] if not text.startswith("the choice among several runs"))],
    }
    accounting |= {
        "headline": "upper bound for the largest client by Renyi DP, which alone bounds the best of a random number of trials; "
        "for a space of several mechanisms, the largest divergence of each order counts",
        "assumptions": [
            *accounting["assumptions"],
            *({"assumption": c, "holds": True, "because": "the sweep does so"} for c in CONDITIONS),
        ],
    }
    mechanism = {**line["mechanism"], "name": f"{_number(repetitions)} Each trial: {line['mechanism']['name']}", "enforced": ENFORCED}
    return {**line, "summary": summary, "guarantee": guarantee, "accounting": accounting, "mechanism": mechanism}


def _number(repetitions: Repetitions) -> str:
    kind = {0.0: "logarithmic distribution", 1.0: "geometric distribution"}.get(
        repetitions.shape, f"truncated negative binomial distribution of shape {repetitions.shape:g}"
    )
    return f"The number of trials was drawn from the {kind} with mean {repetitions.mean:g}."
