"""Which aggregation rules go with a privacy claim."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.traits import Wants


def check_rule(config: Config, wants: Wants, mean: bool) -> list[str]:
    """Refuse an aggregation rule that the regime's guarantee does not cover, or that would not run.

    Args:
        config: the run.
        wants: what the rule declares that it is given.
        mean: it is the weighted mean.

    Returns:
        Warnings.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    kind, regime = config.aggregation.kind, config.privacy.whole_clients
    if regime in ("client", "distributed") and wants == "each":
        seen = "before its noise" if regime == "client" else "without the noise of the others"
        raise PrivacyRefusal(
            f"aggregation.kind: '{kind}' needs each client's update {seen}, and is no sum of bounded terms, so one client can change its result "
            "by more than the noise is made for; use mean, or privacy.regime=local, under which each update is private by itself.",
            f"privacy.incompatible.{regime}.aggregation",
        )
    if regime in ("client", "distributed") and not mean:
        raise PrivacyRefusal(
            f"aggregation.kind: '{kind}' would not run, because the privacy mechanism itself turns the noised sum into a mean; use mean, and "
            "change the model's step by algorithm or server.",
            f"privacy.incompatible.{regime}.aggregation",
        )
    if config.privacy.regimes and wants == "each":
        return [
            f"aggregation.kind: '{kind}' judges updates by how they differ, which under DP is mostly noise; expect it to drop good updates, "
            "and compare with mean."
        ]
    return []
