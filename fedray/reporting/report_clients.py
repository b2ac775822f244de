"""A report's part on the clients' own results: of each metric and model, the distribution over the clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedray.clientfigures import FIGURES, MODELS, QUANTILES, metrics_of, models_of
from fedray.reporting.report_text import figure, table

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
