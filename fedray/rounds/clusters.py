"""Which of several models each client takes, as its evaluations tell: figures of a round, and a file with a row for each client."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedray.clients.messages import LocalEvaluation
from fedray.runfiles import CLUSTERS
from fedray.storage import read_json, write_json


class Clusters:
    """The clients' clusters, of this run and of the one that it continues.

    Args:
        root: the run's directory.
        metric: by which clients are judged.
    """

    def __init__(self, root: Path, metric: str) -> None:
        self._file, self._metric = root / CLUSTERS, metric

    def take(self, round_: int, told: Sequence[LocalEvaluation]) -> dict[str, float]:
        """Write down the clusters after a round.

        Args:
            round_: number of rounds that are done.
            told: what the clients tell.

        Returns:
            ``clusters/K_clients``, the number of clients in each, and ``clusters/moved``, how many have changed theirs since the last
            evaluation; nothing where there are no clusters.
        """
        found = {one.name: one for one in told if one.cluster is not None}
        if not found:
            return {}
        known = read_json(self._file) or {"round": 0, "rows": []}
        again = known["round"] >= round_  # of a driver that has died since
        before = {row["client"]: row["before" if again else "cluster"] for row in known["rows"]}
        rows = [
            {"client": name, "cluster": one.cluster, "before": before.get(name)}
            | ({self._metric: value} if math.isfinite(value := one.metrics.get(self._metric, math.nan)) else {})
            for name, one in found.items()
        ]
        write_json(self._file, {"round": round_, "rows": rows})
        sizes = Counter(one.cluster for one in found.values() if one.cluster is not None)
        moved = sum(row["before"] not in (None, row["cluster"]) for row in rows)
        return {f"clusters/{k}_clients": float(sizes[k]) for k in range(max(sizes) + 1)} | {"clusters/moved": float(moved)}
