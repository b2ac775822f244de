"""A report's parts on single clients: of each metric and model the distribution over them, and their clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedray.clientfigures import FIGURES, MODELS, QUANTILES, metrics_of, models_of
from fedray.reporting.report_text import figure, table
from fedray.runfiles import CLUSTERS
from fedray.tracking.journal import number
from fedray.tracking.rundata import client_rows

#: Largest number of a cluster's clients that are named.
_NAMED = 20
_SAID = {name: f"{share:.0%} are no better" for name, share in QUANTILES.items()} | {"std": "standard deviation"}


def at_clients(final: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Markdown lines of the final figures over clients; none where there are no such figures.

    Args:
        final: the final figures by name, see :mod:`fedray.clientfigures`.
    """
    for metric in metrics_of(final):
        yield from (f"### {metric} at the clients", "")
        yield from ("On each client's own held-out records, clients with equal weight.", "")
        rows = []
        for model in models_of(final, metric):
            front = f"{model}/{metric}"
            left = final.get(f"{front}_left_out")
            without = "" if left is None else f" (without {left:.0f} clients, at which it is not defined)"
            rows.append((MODELS[model] + without, *(figure(final.get(f"{front}_{name}", "")) for name in FIGURES)))
        yield from table(("", *(_SAID.get(name, name) for name in FIGURES)), rows)


def clusters(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Markdown lines on which of several models each client takes; none where there are no clusters.

    Args:
        document: of the run's ``clusters.json``.
    """
    rows = client_rows(document)
    if not rows:
        return
    metric = next((key for row in rows for key in row if key not in ("client", "cluster", "before")), "")
    yield from ("### Clusters", "")
    yield from (f"The model that each client takes after round {document.get('round', '?')}; all are in {CLUSTERS}.", "")
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(int(row["cluster"]), []).append(row)
    lines = []
    for k, mine in sorted(found.items()):
        values = [value for row in mine if (value := number(row.get(metric))) is not None]
        mean = figure(sum(values) / len(values)) if values else ""
        lines.append((str(k), str(len(mine)), mean, _named([str(row["client"]) for row in mine])))
    yield from table(("model", "clients", f"mean {metric}", ""), lines)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
