"""The plan of a charged evaluation, and the rules for it.

Each client adds up bounded integers over its held-out records (:mod:`fedray.training.noisedmetrics`), adds discrete Gaussian noise, and sends
nothing else. One evaluation is charged to each client as one Gaussian, as a query is, in the ledger that its training is charged to: held-out
records are priced as if they were training records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedray.config import Config
from fedray.errors import ConfigError, PrivacyRefusal
from fedray.privacy.integersums import GRID
from fedray.privacy.queryplan import QueryPlan, noised_sums
from fedray.privacy.recordplan import Purpose, RecordPlan


@dataclass(frozen=True)
class EvaluationPlan(QueryPlan):
    """Public constants of an evaluation: those of a query that is asked in some rounds of a run."""

    purpose: ClassVar[Purpose] = "evaluation"

    def terms(self) -> dict[str, Any]:
        """The plan as JSON data, for ledgers and statements."""
        return super().terms() | {"purpose": self.purpose}


def plan_evaluation(plan: RecordPlan, sizes: Sequence[tuple[str, int]]) -> EvaluationPlan:
    """The plan of each evaluation of a run. It follows from the plan of the training, so that a client makes the same as the driver.

    Args:
        plan: of the training, with evaluations.
        sizes: name and number of values of each statistic, of which a record contributes at most :data:`GRID` in L2 norm.

    Raises:
        ConfigError: so much noise has no sampler.
    """
    assert plan.evaluations is not None
    noise = plan.evaluations.noise_multiplier
    try:
        sums = noised_sums(noise, [(name, size, GRID**2, 1.0) for name, size in sizes])
    except ConfigError:
        raise ConfigError(f"evaluation.charged.noise_multiplier: {noise:g} is beyond the sampler of exact noise; take less.") from None
    return EvaluationPlan(
        noise_multiplier=noise,
        delta=plan.delta,
        budget=plan.budget,
        target_epsilon=None,
        max_silos_per_person=plan.max_silos_per_person,
        accountant=plan.accountant,
        accountant_version=plan.accountant_version,
        interval=plan.interval,
        rng=plan.rng,
        sums=sums,
    )


def check_charged(config: Config) -> None:
    """Refuse evaluation at the clients where a claim does not cover it, and charges for it where they would be for nothing.

    Raises:
        PrivacyRefusal: with what to use instead.
        ConfigError: keys of the section have no effect.
    """
    evaluation, privacy = config.evaluation, config.privacy
    if evaluation.fine_tune is not None and privacy.regimes:
        raise PrivacyRefusal(
            "evaluation.fine_tune: it trains on the clients' records without noise and without a charge, and releases what comes of it; take it "
            "out, or compare with fine-tuning in a run on public records with privacy.regime=none.",
            f"privacy.incompatible.{privacy.regimes[0]}.fine_tune",
        )
    if evaluation.charged is None:
        if evaluation.federated and privacy.regimes and "evaluation" not in privacy.unprotected:
            raise _unprotected(privacy.regimes[0])
        return
    if not evaluation.federated:
        raise ConfigError(
            "evaluation.charged: is for evaluation at the clients, but evaluation.federated is false; set it to true, or take it out."
        )
    if not privacy.regimes:
        raise ConfigError(
            "evaluation.charged: privacy.regime is none, so nothing is charged and noise would protect nobody; take it out, or set "
            "privacy.regime=record."
        )
    if "evaluation" in privacy.unprotected:
        raise ConfigError(
            "evaluation.charged: the evaluation is charged, so privacy.unprotected need not name it; take one of the two out."
        )
    if privacy.whole_clients is not None:
        raise PrivacyRefusal(
            f"evaluation.charged: {privacy.whole_clients} protects a whole client, whose counts over its held-out records have no bound that leaves a "
            "figure among few clients; set evaluation.federated=false and evaluate on public records, or use privacy.regime=record.",
            f"privacy.incompatible.{privacy.whole_clients}.charged_evaluation",
        )
    if privacy.person is not None:
        raise PrivacyRefusal(
            "evaluation.charged: an evaluation bounds what one held-out record contributes, and a person may have several; set "
            "evaluation.federated=false and evaluate on public records, or protect records (without privacy.person).",
            "privacy.incompatible.person.charged_evaluation",
        )


def check_judged(config: Config, global_model: bool) -> None:
    """Refuse charged evaluation of models that are not the driver's.

    Args:
        config: the run.
        global_model: whether every client evaluates the model that the driver sends, and none of its own.

    Raises:
        PrivacyRefusal: the clients evaluate models of their own.
    """
    if config.evaluation.charged is not None and not global_model:
        raise PrivacyRefusal(
            f"evaluation.charged: clients of '{config.algorithm.kind}' evaluate models of their own, which their training records decide, so one "
            "record could change what is counted of all others; set evaluation.federated=false, or use an algorithm with one model for all, "
            "such as fedavg or fedprox.",
            "privacy.incompatible.charged_evaluation.own_models",
        )


def _unprotected(regime: str) -> PrivacyRefusal:
    ways = ["evaluation.charged.noise_multiplier, with which it is noised and charged"] if regime == "record" else []
    ways.append(
        "evaluation.federated=false, and evaluate on public records or ask after the run by fedray query (judged=RUN_DIR), which charges it"
    )
    return PrivacyRefusal(
        f"evaluation.federated: metrics on the clients' own records are released without noise; set {', or '.join(ways)}, or accept it with "
        "privacy.unprotected=[evaluation], which voids the claim.",
        f"privacy.incompatible.{regime}.federated_evaluation",
    )
