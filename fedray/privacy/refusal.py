"""The refusal of another round to a client, in a sentence that says which setting would fit the budget."""

from __future__ import annotations

from dataclasses import dataclass

from fedray.privacy.accounting import budgets
from fedray.privacy.accounting.events import Composition
from fedray.privacy.queryplan import AnyPlan
from fedray.privacy.recordplan import Purpose
from fedray.rounding import as_given, rounded_up

#: What is refused, and the section of the config that sets its noise.
_WORDS: dict[Purpose, tuple[str, str]] = {
    "training": ("another round", "privacy"),
    "query": ("this query", "privacy"),
    "evaluation": ("another evaluation", "evaluation.charged"),
}


@dataclass(frozen=True)
class Refusal:
    """The reason why a client may not train another round; ``str()`` gives the sentence.

    Attributes:
        subject: name of the client.
        spent: its epsilon so far.
        after: its epsilon after one more round.
        budget: largest allowed epsilon; None if only the number of participations is limited.
        participations: number of rounds that this run charged to the client.
        composition: the client's charges.
        plan: the client's plan.
        limits: limits file that sets the budget, which no config can raise; None if the config sets it.
    """

    subject: str
    spent: float
    after: float
    budget: float | None
    participations: int
    composition: Composition
    plan: AnyPlan
    limits: str | None = None

    def fits(self) -> tuple[float | None, int | None]:
        """See :func:`fedray.privacy.accounting.budgets.fits`."""
        return budgets.fits(self.composition, self.plan)

    def __str__(self) -> str:
        if self.budget is None or self.after <= self.budget:
            return (
                f"{self.subject}: took part in {self.participations} rounds, which is privacy.max_participations; "
                "a plan with more participations needs more noise."
            )
        noise, steps = self.fits()
        what, section = _WORDS[self.plan.purpose]
        ways = [f"{section}.noise_multiplier={noise:g}"] if noise is not None else []
        ways += [f"training.steps={steps}"] if steps else []
        fit = f"it would fit with {' or '.join(ways)}" if ways else "no setting makes it fit"
        end = "or raise privacy.budget" if self.limits is None else f"and {self.limits} allows no more, whatever the config says"
        return (
            f"{self.subject}: has spent epsilon {rounded_up(self.spent)} of {as_given(self.budget)}, and {what} would bring it to "
            f"{rounded_up(self.after)}; {fit}, {end}."
        )


def refusal(subject: str, plan: AnyPlan, composition: Composition, participations: int, limits: str | None = None) -> Refusal | None:
    """The refusal of another round to a subject; None if it may train.

    Args:
        subject: name of the client.
        plan: its plan.
        composition: its charges in the ledger.
        participations: number of rounds that this run charged to it.
        limits: limits file that sets the plan's budget; None if the config sets it.
    """
    after = budgets.plus(composition, plan.event())
    full = plan.max_participations is not None and participations >= plan.max_participations
    if not full and budgets.affordable(after, plan):
        return None
    spent, then = budgets.bound(composition, plan), budgets.bound(after, plan)
    return Refusal(subject, spent, then, plan.budget, participations, composition, plan, limits)
