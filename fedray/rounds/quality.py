"""How good the model is, round after round: what clients measured, the best so far, and what was not defined."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from fedray.clientfigures import distribution, front_of
from fedray.clients.messages import LocalEvaluation
from fedray.evaluationconfig import Evaluation
from fedray.faults import Fault
from fedray.runfiles import Row
from fedray.training.evaluate import find_metrics
from fedray.training.metrics import lower_is_better

_NAMED = 3  # largest number of clients that a sentence names


class Quality:
    """The metrics of a run.

    Args:
        evaluation: the config's section; its first metric is the one that runs are judged by.
        tell: is given a fault for each metric without a value, once, and again where that changes.
    """

    def __init__(self, evaluation: Evaluation, tell: Callable[[Fault], None]) -> None:
        metrics = find_metrics(evaluation.metrics)
        self._lower = {name for name, metric in metrics.items() if lower_is_better(metric)}
        self._headline = evaluation.headline
        self._tell, self._said = tell, dict[str, str]()
        self.best: dict[str, float] = {}
        self.last: Row | None = None

    def remember(self, row: Row) -> None:
        """Take a complete row, of this run or of the run that it continues, into account for the best result."""
        self.last = row
        name = self._headline
        value = row["metrics"].get(name)
        if value is None:
            return
        sign = -1 if name.removeprefix("eval/") in self._lower else 1
        if name not in self.best or sign * value > sign * self.best[name]:
            self.best = {name: value, "round": row["round"]}

    def finished(self, row: Row) -> Row:
        """A row as it is written, see :func:`numbers_only`; reports metrics that are not finite."""
        row = numbers_only(row)
        odd = row.get("not_finite", {})
        for name, value in odd.items():
            self._say(row["round"], name, value, f"round {row['round']}: {name} came out as {value}, so it has no value in this round.")
        for name in set(self._said) & set(row["metrics"]):
            del self._said[name]
        self.remember(row)
        return row

    def at_clients(self, round_: int, rows: Sequence[LocalEvaluation], central: bool) -> dict[str, float]:
        """Summarise what the clients measured, see :func:`summarize`; reports the clients that are left out."""
        for name in dict.fromkeys(name for row in rows for name in row.metrics):
            without = [row for row in rows if not math.isfinite(row.metrics[name])]
            who = ", ".join(row.name for row in without[:_NAMED]) + (", ..." if len(without) > _NAMED else "")
            why = next((f": {row.failed[name]}" for row in without if name in row.failed), ".")
            text = (
                f"round {round_}: {name} is not defined at {len(without)} of {len(rows)} clients ({who}), which its figures leave out{why}"
            )
            self._say(round_, f"{name} at clients", who if without else "", text)
        return summarize(rows, central, self._lower)

    def _say(self, round_: int, about: str, what: str, text: str) -> None:
        if what and self._said.get(about) != what:
            self._tell(Fault("round", text, round_))
        self._said[about] = what


def numbers_only(row: Row) -> Row:
    """A row with only numbers among its metrics, so that it is valid JSON; the others stand beside them by name, under ``not_finite``."""
    odd = {k: str(float(v)) for k, v in row["metrics"].items() if v is not None and not math.isfinite(v)}
    kept = {k: float(v) for k, v in row["metrics"].items() if v is not None and k not in odd}
    odd = {**row.get("not_finite", {}), **odd}
    return {**row, "metrics": kept} | ({"not_finite": odd} if odd else {})


def summarize(rows: Sequence[LocalEvaluation], central: bool, lower: Collection[str] = ("loss", "mae", "rmse")) -> dict[str, float]:
    """Federated evaluation in figures.

    ``fairness/M_mean|worst|p10|p25|p50|p75|std`` over clients with equal weight, and as many ``global/`` or ``fine_tuned/`` where clients
    measured further models (:data:`fedray.clientfigures.MODELS`); without a central test set also ``eval/M``, the mean over records. A
    client at which M is not defined (NaN) is left out of M's figures; ``fairness/M_left_out`` counts those.

    Args:
        rows: one a client.
        central: there is a central test set.
        lower: the metrics of which less is better.
    """
    figures: dict[str, float] = {}
    for name in rows[0].metrics if rows else ():
        values, records = (np.array(column, dtype=np.float64) for column in _columns(rows, name))
        front = front_of(name)
        if len(values) < len(rows):
            figures[f"{front}_left_out"] = float(len(rows) - len(values))
        if not len(values):
            continue
        figures |= {f"{front}_{what}": value for what, value in distribution(values, name.rpartition("/")[2] in lower).items()}
        if not central and name != front:
            figures[f"eval/{name}"] = float(values @ records / records.sum())
    return figures


def _columns(rows: Iterable[LocalEvaluation], name: str) -> tuple[Any, Any]:
    found = [(row.metrics[name], row.records) for row in rows if math.isfinite(row.metrics[name])]
    return [value for value, _ in found], [records for _, records in found]
