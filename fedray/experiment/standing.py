"""Which clients have withdrawn their data, by what the driver can look up without being charged for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fedray.clients.pool import Pool
from fedray.config import Config
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.ledger.withdrawal import Watch, books_in


class Standing:
    """See the module's text. Where clients are charged in the driver's ledgers, these say the rest.

    Args:
        config: the run.
        root: its output's directory on this node.
    """

    def __init__(self, config: Config, root: Path) -> None:
        privacy = config.privacy
        watched = not privacy.regimes and privacy.ledger != "run" and config.clients.placement == "hosted"
        self._watch = Watch(partial(books_in, ledger_directory(privacy.ledger, root))) if watched else None

    def now(self, pool: Pool | None) -> dict[str, str]:
        """A sentence for each client that has withdrawn: by what its own actor said when it started, or by the ledgers of hosted clients."""
        said = {} if pool is None else {s.place.key: s.info.withdrawn for s in pool.slots if s.info is not None and s.info.withdrawn}
        return said | ({} if self._watch is None else {name: str(why) for name, why in self._watch.now().items()})
