"""What a privacy claim excludes of the schedules: steps whose clients are not those that its noise is accounted for."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import PrivacyRefusal


def check_pacing(config: Config, carries: bool, selects: bool) -> None:
    """Refuse a schedule, or simulated stragglers, under which the regime's guarantee does not hold.

    Args:
        config: the run.
        carries: updates may start from earlier versions of the model.
        selects: which clients count depends on how fast they are.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    if config.privacy.regimes and config.cohort.stragglers is not None:
        raise PrivacyRefusal(
            "cohort.stragglers: who straggles, and how far it gets, follows from the run's seed, while noise is accounted for clients that do all "
            "that they are charged for, in cohorts that no seed tells; take it out, or set privacy.regime=none.",
            f"privacy.incompatible.{config.privacy.regimes[0]}.stragglers",
        )
    regime, kind = config.privacy.whole_clients, config.pacing.kind
    if regime in ("client", "distributed") and (carries or selects):
        way = "no cohort is drawn, and who is in a step depends" if carries else "who is in the sum depends not on secret coins alone but"
        raise PrivacyRefusal(
            f"pacing.kind: with '{kind}' {way} on how fast clients are, while {regime} noise is accounted for cohorts that are drawn; use "
            "pacing.kind=synchronous, or privacy.regime=record or local.",
            f"privacy.incompatible.{regime}.{'asynchronous' if carries else 'over_selection'}",
        )
    if regime is not None and config.pacing.arrival == "simulated" and config.training.epochs is not None:
        raise PrivacyRefusal(
            "pacing.arrival: simulated turns of training.epochs passes take as long as a client has records, and how many is private where whole "
            "clients are protected; give training.steps, or use pacing.arrival=real.",
            f"privacy.incompatible.{regime}.simulated_arrival",
        )
