"""Exports a run's metrics rows to Prometheus by Ray's metrics agent, which puts ``ray_`` before each name.

Only values of rows are exported, so a figure that ``metrics.jsonl`` leaves out for privacy is not shown here either. Names follow
Prometheus' conventions: base units, and ``_total`` for counters (which Ray appends).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from fedray.tracking.journal import Row, number


@dataclass(frozen=True)
class Exported:
    """One exported series: a gauge, or a counter to which each row adds its value.

    Attributes:
        name: name without Ray's prefix and the suffix of counters.
        text: description with the unit.
        counter: whether the series is a counter.
        tags: tags beside ``run`` and ``experiment``.
        factor: factor on a row's value.
    """

    name: str
    text: str
    counter: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    factor: float = 1.0

    @property
    def series(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.counter else "")


def _clients(outcome: str) -> Exported:
    return Exported("fedray_clients", "Clients of finished rounds, by how their turn ended.", True, {"outcome": outcome})


def _bytes(direction: str) -> Exported:
    return Exported("fedray_bytes", "Bytes of updates (up) and weights (down) that rounds moved.", True, {"direction": direction}, 1e6)


#: The series of each metric of a row. All metrics below ``eval/`` are exported as :data:`EVALUATION`.
ROWS: dict[str, Exported] = {
    "time/round_s": Exported("fedray_round_seconds", "Seconds that the last round took."),
    "time/train_s": Exported("fedray_round_training_seconds", "Seconds of the last round in which clients trained."),
    "round/clients_completed": _clients("completed"),
    "round/clients_failed": _clients("failed"),
    "round/clients_late": _clients("late"),
    "round/clients_refused": _clients("refused"),
    "round/retries": Exported("fedray_client_retries", "Turns that were given to another actor after one died.", True),
    "round/actor_deaths": Exported("fedray_actor_deaths", "Client actors that died.", True),
    "traffic/uplink_mb": _bytes("up"),
    "traffic/downlink_mb": _bytes("down"),
}
for _line, _unit in (("privacy", "first"), ("privacy/joint", "second")):
    ROWS |= {
        f"{_line}/epsilon": Exported("fedray_epsilon", "Epsilon spent by the client that spent most.", tags={"guarantee": _unit}),
        f"{_line}/budget": Exported("fedray_epsilon_budget", "Epsilon at which a client is refused.", tags={"guarantee": _unit}),
        f"{_line}/rounds_left": Exported(
            "fedray_rounds_left", "Rounds that the budget still allows the client that has the fewest.", tags={"guarantee": _unit}
        ),
        f"{_line}/clients_exhausted": Exported(
            "fedray_clients_exhausted", "Clients left out of rounds because their budget is used up.", tags={"guarantee": _unit}
        ),
    }
ROUND = Exported("fedray_round", "Rounds finished.")
PLANNED = Exported("fedray_rounds_planned", "Rounds that the run is to have.")
TIME = Exported("fedray_last_round_timestamp_seconds", "Unix time at which the last round was finished.")
EVALUATION = Exported("fedray_evaluation", "The model's evaluation metrics, by name.", tags={"metric": ""})

EXPORTED: tuple[Exported, ...] = (*ROWS.values(), ROUND, PLANNED, TIME, EVALUATION)


class Gauges:
    """Listens to the driver and exports each row; does nothing outside Ray.

    Args:
        experiment, run: tags of every series.
        rounds: number of planned rounds.
    """

    def __init__(self, experiment: str, run: str, rounds: int) -> None:
        self._tags = {"experiment": experiment, "run": run}
        self._metrics: dict[str, Any] = {}
        if ray.is_initialized():
            self._metrics = {name: _metric(exported) for name, exported in {e.name: e for e in EXPORTED}.items()}
        self._show(PLANNED, rounds)

    def listen(self, kind: str, value: Any) -> None:
        """Export each row; see :data:`fedray.faults.Listener`."""
        if kind == "row":
            self._export(value)

    def _export(self, row: Row) -> None:
        self._show(ROUND, row["round"])
        self._show(TIME, row["time"])
        for key, value in row["metrics"].items():
            if key in ROWS:
                self._show(ROWS[key], value)
            elif key.startswith("eval/"):
                self._show(EVALUATION, value, metric=key.removeprefix("eval/"))

    def _show(self, exported: Exported, value: Any, **tags: str) -> None:
        finite, metric = number(value), self._metrics.get(exported.name)
        if finite is None or metric is None:
            return
        labels = {**self._tags, **exported.tags, **tags}
        if exported.counter:
            if finite > 0:
                metric.inc(finite * exported.factor, tags=labels)
        else:
            metric.set(finite * exported.factor, tags=labels)


def _metric(exported: Exported) -> Any:
    from ray.util.metrics import Counter, Gauge

    return (Counter if exported.counter else Gauge)(exported.name, exported.text, tag_keys=("experiment", "run", *exported.tags))
