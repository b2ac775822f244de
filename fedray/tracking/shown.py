"""Which metrics MLflow gets, in which order, and with how many digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedray.clientfigures import FRONTS
from fedray.rounding import rounded_up

#: Counters that are not sent as long as they are zero.
COUNTERS = frozenset(
    {f"round/{name}" for name in ("clients_failed", "clients_late", "clients_refused", "clients_surplus", "actor_deaths", "retries")}
    | {"privacy/clients_exhausted", "privacy/joint/clients_exhausted", "aggregation/muted"}
)

#: Settings that a row repeats; they are sent only from where they change. While they stay as they are, the parameter of this name tells them.
CONSTANTS = {"train/lr": "training.lr", "privacy/budget": "privacy.budget", "privacy/joint/budget": "privacy.joint.budget"}

_FIRST = ("eval/", "privacy/epsilon", "privacy/joint/epsilon", "privacy/", "noise/", *FRONTS, "train/")


def rank(name: str) -> tuple[int, bool]:
    """The place of a metric: what the model is worth, what it cost in privacy, then the rest; epsilon itself before figures beside it."""
    place = next((i for i, front in enumerate(_FIRST) if name.startswith(front)), len(_FIRST))
    return place, name not in ("privacy/epsilon", "privacy/joint/epsilon")


def rounded(name: str, value: float) -> float:
    """A value with the digits that mean something: epsilon rounded up to four decimals, durations in milliseconds, bytes, four digits else."""
    group, _, what = name.rpartition("/")
    if group.startswith("privacy") and what.startswith(("epsilon", "budget_used")):
        return float(rounded_up(value))
    if value == int(value) or name.startswith("audit/"):
        return value
    if group == "time":
        return round(value, 3)
    return round(value, 6) if group == "traffic" else float(f"{value:.{6 if name == 'train/lr' else 4}g}")


class Silence:
    """Which counters were zero, and which settings constant, in all rounds so far; those are not sent.

    Args:
        known: metrics of which the server has values already.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._broken = set(known)
        self._first: dict[str, float] = {}

    def holds(self, name: str) -> bool:
        """Whether a metric is not to be sent."""
        return name not in self._broken and (name in COUNTERS or name in CONSTANTS)

    def hear(self, rounds: Iterable[Mapping[str, float | None]]) -> bool:
        """Take the metrics of rounds into account; returns whether one is to be sent from now on, with all its earlier values."""
        before = len(self._broken)
        for metrics in rounds:
            for name in metrics.keys() & (COUNTERS | CONSTANTS.keys()):
                value = metrics[name]
                if value is not None and value != (0.0 if name in COUNTERS else self._first.setdefault(name, value)):
                    self._broken.add(name)
        return len(self._broken) > before

    @property
    def settings(self) -> dict[str, float]:
        """The settings that stayed constant, by the name of their parameter."""
        return {CONSTANTS[name]: value for name, value in self._first.items() if name not in self._broken}
