"""What a privacy claim excludes of the ways to draw cohorts: those for which no accountant is known, and those that read what nothing protects."""

from __future__ import annotations

from typing import get_args

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.privacy.mechanisms.base import Sampling


def check_cohort(config: Config, weighs: bool, reads: bool) -> None:
    """Refuse cohorts under which the regime's guarantee does not hold.

    Args:
        config: the run.
        weighs: clients are drawn with chances of their own, by which their updates are divided.
        reads: who is drawn depends on clients' training losses.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    regimes, kind = config.privacy.regimes, config.cohort.kind
    if reads and regimes:
        raise PrivacyRefusal(
            f"cohort.kind: '{kind}' chooses clients by the losses of their private records, which they would send without noise; use poisson, "
            "fixed, cyclic or all, or privacy.regime=none.",
            f"privacy.incompatible.{regimes[0]}.losses",
        )
    if config.privacy.whole_clients is None or kind in get_args(Sampling):
        return
    if weighs:
        raise PrivacyRefusal(
            f"cohort.kind: '{kind}' draws clients by their numbers of records, which are private where whole clients are protected, and divides "
            "an update by its client's chance, so it is not bounded by the clip norm; use poisson, fixed, cyclic or all, or privacy.regime=record.",
            "privacy.incompatible.client.cohort",
        )
    raise PrivacyRefusal(
        f"cohort.kind: no accountant is known for '{kind}'; with whole clients protected use poisson, fixed, cyclic or all.",
        "privacy.incompatible.client.cohort",
    )
