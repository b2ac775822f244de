"""Why a client may not train another round, in a sentence that says what would fit."""

from __future__ import annotations

from dataclasses import dataclass

from fedray.privacy.accounting import budgets
from fedray.privacy.accounting.accountant import Composition
from fedray.privacy.clientplan import Plan
from fedray.rounding import as_given, rounded_up


@dataclass(frozen=True)
class Refusal:
    """Why a client may not train another round; ``str()`` is the sentence.

    Attributes:
        subject: the client.
        spent: its epsilon so far.
        after: its epsilon if it trained another round.
        budget: the limit; None where only the number of participations is limited.
        participations: rounds of this run it was charged for.
        composition: what was spent, for computing what would fit.
        plan: its plan.
        limits: the file whose limit the budget is, so that no config can raise it; else None.
    """

    subject: str
    spent: float
    after: float
    budget: float | None
    participations: int
    composition: Composition
    plan: Plan
    limits: str | None = None

    def fits(self) -> tuple[float | None, int | None]:
        """The least noise multiplier, and the most steps, with which one more round fits the budget; None where none does."""
        return budgets.fits(self.composition, self.plan)

    def __str__(self) -> str:
        if self.budget is None or self.after <= self.budget:
            return (
                f"{self.subject}: took part in {self.participations} rounds, which is privacy.max_participations; "
                "to plan for more of them takes more noise."
            )
        noise, steps = self.fits()
        ways = [f"privacy.noise_multiplier={noise:g}"] if noise is not None else []
        ways += [f"training.steps={steps}"] if steps else []
        fit = f"it would fit with {' or '.join(ways)}" if ways else "no setting makes it fit"
        end = "or raise privacy.budget" if self.limits is None else f"and {self.limits} allows no more, whatever the config says"
        return (
            f"{self.subject}: has spent epsilon {rounded_up(self.spent)} of {as_given(self.budget)}, and another round would bring it to "
            f"{rounded_up(self.after)}; {fit}, {end}."
        )


def refusal(subject: str, plan: Plan, composition: Composition, participations: int, limits: str | None = None) -> Refusal | None:
    """Why a subject that was charged ``composition``, and ``participations`` rounds of this run, may not train another; None where it may.

    ``limits``: the file whose limit the plan's budget is.
    """
    after = budgets.plus(composition, plan.event())
    full = plan.max_participations is not None and participations >= plan.max_participations
    if not full and budgets.affordable(after, plan):
        return None
    spent, then = budgets.bound(composition, plan), budgets.bound(after, plan)
    return Refusal(subject, spent, then, plan.budget, participations, composition, plan, limits)
