"""Which clients have withdrawn their data, by what the driver can look up without being charged for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fedray.clients.pool import Pool
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.privacy.ledger.chain import Withdrawal
from fedray.privacy.ledger.location import ledger_directory
from fedray.privacy.ledger.withdrawal import LedgerWatch, books_in

_NAMED = 3  # clients in a sentence


class Standing:
    """See the module's text. Where clients are charged in the driver's ledgers, these say the rest.

    Args:
        config: the run.
        root: its output's directory on this node.
        names: of its clients.
        fresh: whether it begins, and is not continued.
    """

    def __init__(self, config: Config, root: Path, names: Sequence[str], fresh: bool) -> None:
        privacy, self._names, self._fresh = config.privacy, names, fresh
        watched = not privacy.regimes and privacy.ledger != "run" and config.clients.placement == "hosted"
        self._watch = LedgerWatch(partial(books_in, ledger_directory(privacy.ledger, root))) if watched else None

    def refuse(self, withdrawn: Mapping[str, Withdrawal | str]) -> None:
        """Refuse to begin a run with clients that have withdrawn; one that is continued goes on without them.

        Raises:
            ConfigError: there is one; the sentence says how to begin without it.
        """
        found = [name for name in self._names if name in withdrawn] if self._fresh and withdrawn else []
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise ConfigError(
                f"clients: {withdrawn[found[0]]} A run begins without {', '.join(found[:_NAMED])}{more} with data.without=[{','.join(found)}], and "
                "is then as one that never had them."
            )

    def now(self, pool: Pool | None) -> dict[str, str]:
        """A sentence for each client that has withdrawn: by what its own actor said when it started, or by the ledgers of hosted clients."""
        said = {} if pool is None else {s.place.key: s.info.withdrawn for s in pool.slots if s.info is not None and s.info.withdrawn}
        return said | ({} if self._watch is None else {name: str(why) for name, why in self._watch.now().items()})
