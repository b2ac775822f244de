"""The rule for records that clients hold out under record privacy."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import PrivacyRefusal


def check_holdout(config: Config, per_silo: bool) -> None:
    """Refuse a split at the clients that looks at labels, where records are protected.

    Quotas of each class depend on all of a client's labels: without one record, up to one other record of each class would be on the other side
    of the split, so the guarantee for one record would not cover the difference.

    Args:
        config: a run or a query.
        per_silo: whether the source has a place for each client, which then holds out its own records whatever ``data.holdout.at`` says.

    Raises:
        PrivacyRefusal: with what to set.
    """
    holdout = config.data.holdout
    if config.privacy.record and holdout.stratify and holdout.fraction and (per_silo or holdout.at == "clients"):
        raise PrivacyRefusal(
            "data.holdout.stratify: at a client the label of one record decides which of its other records are trained on and which are held out, so "
            "without that record several could change places; set data.holdout.stratify=false, or leave it out.",
            "privacy.incompatible.record.stratified",
        )
