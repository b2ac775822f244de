"""Whether a plan of privacy follows from the config that it came with; a driver that lies about one of the two is found out here."""

from __future__ import annotations

from dataclasses import replace

from fedray.config import Config
from fedray.privacy.recordplan import RecordPlan, plan_record
from fedray.rounding import as_given, rounded_up
from fedray.silos.objection import Objection, contradiction
from fedray.silos.spending import epsilon_of, planned_charges


def untrue(plan: RecordPlan, config: Config) -> Objection | None:
    """An objection to a plan for records that does not follow from its config; None if it does.

    The version of the accountant may be another, for figures are computed here.
    """
    privacy = config.privacy
    as_said = privacy.model_copy(update={"noise_multiplier": plan.noise_multiplier, "target_epsilon": None})
    ours = plan_record(config.model_copy(update={"privacy": as_said}))
    budget = privacy.budget if privacy.budget is not None else privacy.target_epsilon
    most = min(config.rounds, privacy.max_participations or config.rounds)
    ours = replace(ours, target_epsilon=privacy.target_epsilon, budget=budget, accountant_version=plan.accountant_version)
    if not 0 < plan.participations <= most:
        return contradiction(
            "plan.participations", plan.participations, f"the plan says {plan.participations}, and the config at most {most}"
        )
    theirs = plan.terms()
    for key, value in replace(ours, participations=plan.participations).terms().items():
        if theirs.get(key) != value:
            return contradiction(f"plan.{key}", theirs.get(key), f"the plan says {theirs.get(key)!r}, and the config {value!r}")
    if privacy.noise_multiplier is not None and plan.noise_multiplier != privacy.noise_multiplier:
        why = f"the plan says {plan.noise_multiplier:g}, and the config {privacy.noise_multiplier:g}"
        return contradiction("plan.noise_multiplier", plan.noise_multiplier, why)
    if privacy.target_epsilon is not None and (found := epsilon_of(planned_charges(plan), plan)) > privacy.target_epsilon:
        why = f"with it the run comes to epsilon {rounded_up(found)}, and the config says {as_given(privacy.target_epsilon)}"
        return contradiction("plan.noise_multiplier", plan.noise_multiplier, why)
    return None
