"""Which runs may normalise records by the answers of a query."""

from __future__ import annotations

from fedray.config import Config
from fedray.errors import PrivacyRefusal
from fedray.queriedconstants import queried_from


def check_queried(config: Config) -> None:
    """Refuse constants that a query has computed from private records without the protection that this run claims.

    Raises:
        PrivacyRefusal: with what to use instead.
    """
    queried, privacy = queried_from(config.data.normalize.arguments), config.privacy
    if queried is None:
        return
    if not queried.get("private"):
        raise PrivacyRefusal(
            f"data.normalize.from: the answers of the query '{queried.get('query')}' are not private (claim {queried.get('claim')}), so constants "
            "from them would reveal records outside this run's epsilon; ask the query with privacy.regime=record, or use public constants.",
            f"privacy.incompatible.{privacy.regimes[0]}.exact_constants",
        )
    if privacy.whole_clients is not None:
        raise PrivacyRefusal(
            f"data.normalize.from: the answers of the query '{queried.get('query')}' protect single records, but {privacy.whole_clients} claims to "
            "protect whole clients; use public constants, or privacy.regime=record.",
            f"privacy.incompatible.{privacy.whole_clients}.queried_constants",
        )
