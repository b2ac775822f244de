"""What one more round costs to account for, against dp-accounting asked from scratch; prints and keeps the figures.

``python -m tests.benchmarks.accounting``. Two books: one for a population of a million clients of which a thousand are
drawn a round (one entry a round covers them all), and one of a silo that does twenty noised steps a round. Each
under one noise multiplier for the whole run, and under one that changes every 100 rounds. Run it with OMP_NUM_THREADS=1:
times are those of the processor.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant

from fedray.privacy.accounting import accountant, pld, renyi
from fedray.privacy.accounting.accountant import INTERVAL, bound, flatten
from fedray.privacy.accounting.events import Event, Gaussian, Poisson, SelfComposed
from fedray.privacy.accounting.renyi import to_dp_event

ROUNDS, PHASE, AROUND, DELTA = (10, 100, 1000, 10_000), 100, 5, 1e-6
RESULTS = Path(__file__).parent / "results"
EventOf = Callable[[int], Event]


def population(noise: float) -> Event:
    """A round of 1000 out of 1,000,000 clients."""
    return Poisson(Fraction(1000, 1_000_000), Gaussian(noise))


def silo(noise: float) -> Event:
    """A round of a silo: 20 steps, a record in each with probability 1/100."""
    return SelfComposed(20, Poisson(Fraction(1, 100), Gaussian(2 * noise)))


def constant(of: Callable[[float], Event]) -> EventOf:
    """Round to event, always the same."""
    return lambda round: of(0.8)


def changing(of: Callable[[float], Event]) -> EventOf:
    """Round to event, another one every 100 rounds."""
    return lambda round: of(0.8 + (round // PHASE) / 200)


def spent_before(event_of: EventOf, rounds: int) -> Counter[Event]:
    """What rounds 0 to ``rounds`` - 1 charged."""
    return Counter(event_of(round) for round in range(rounds))


def from_scratch(spent: Counter[Event]) -> tuple[float, float]:
    """Epsilon by dp-accounting with nothing kept, and its milliseconds."""
    began = time.process_time()
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, INTERVAL)
    for event, count in flatten(spent):
        accountant.compose(to_dp_event(event), count)
    return accountant.get_epsilon(DELTA), (time.process_time() - began) * 1e3


def measure(event_of: EventOf, rounds: int) -> dict[str, Any]:
    """Milliseconds (of the processor, so that others on the machine do not count) of the figure after each of the ten rounds around round number ``rounds`` of a run that goes on.

    A process that has just begun pays ``first_ms`` once. A new phase begins at ``rounds`` where the schedule changes.
    """
    for kept in (accountant._epsilon, renyi.vector):
        kept.cache_clear()
    pld._kept = pld._Cache(pld._POINTS_KEPT)
    spent = spent_before(event_of, max(rounds - AROUND - 2, 1))
    began = time.process_time()
    bound(spent, DELTA)
    first = (time.process_time() - began) * 1e3
    took = []
    for round in range(spent.total(), rounds + AROUND):
        spent[event_of(round)] += 1
        began = time.process_time()
        figure = bound(spent, DELTA)
        took.append((time.process_time() - began) * 1e3)
    direct, scratch = from_scratch(spent)
    assert abs(figure - direct) <= 1e-6 * direct, (figure, direct)
    median = statistics.median(took[2:])
    return {
        "epsilon": figure,
        "ms_per_round": round_to(median),
        "ms_slowest_round": round_to(max(took[2:])),
        "first_ms": round_to(first),
        "ms_dp_accounting_from_scratch": round_to(scratch),
        "times_faster": round_to(scratch / median),
    }


def round_to(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def main() -> None:
    """Measure all, print, keep."""
    from_scratch(Counter([population(1.0)]))
    figures: dict[str, Any] = {
        f"{book.__name__}, {schedule.__name__}": {str(rounds): measure(schedule(book), rounds) for rounds in ROUNDS}
        for book in (population, silo)
        for schedule in (constant, changing)
    }
    for name, by_round in figures.items():
        for rounds, f in by_round.items():
            print(
                f"{name:22} round {rounds:>6}: {f['ms_per_round']:7.1f} ms (slowest {f['ms_slowest_round']:.1f}), "
                f"{f['times_faster']:g} times faster than from scratch, epsilon {f['epsilon']:.4f}"
            )
    figures["machine"] = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    figures["versions"] = {"dp-accounting": version("dp-accounting"), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accounting.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
