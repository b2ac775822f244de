"""What one more round costs in the books of a million clients; prints and keeps the figures.

``python -m tests.benchmarks.books``. Per-client charging (a thousand of a million clients are charged a round), and one
entry for the whole population; at round 1 and at round 10,000. A round is: who is exhausted, reserve, commit, and the
figures of all clients for the metrics. The disk's fsync is measured apart.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fedray.clients.messages import ClientReport, ClientTask
from fedray.configfile import build_config
from fedray.privacy.account import Account
from fedray.privacy.clientplan import plan_clients
from fedray.privacy.ledger.chain import EVERYONE, Charge
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path
from fedray.rounds.books import Books, PopulationBook, RunBook
from fedray.rounds.round_metrics import GuaranteePlan, Guarantees

CLIENTS, COHORT, LATE, ROUNDS = 1_000_000, 1000, 10_000, 12
RESULTS = Path(__file__).parent / "results"


def config(cohort: dict[str, Any]) -> Any:
    """A run whose budget is far away."""
    return build_config(
        {
            "name": "books",
            "rounds": 20_000,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": {"batch_size": 10, "epochs": 1},
            "cohort": cohort,
            "privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-7, "budget": 1000.0},
        }
    )


def measure(cohort: dict[str, Any], rounds_before: int, directory: Path) -> dict[str, float]:
    """Milliseconds of a round, median of twelve, after so many rounds were charged."""
    plan = plan_clients(config(cohort), CLIENTS, 1000, 20)
    names = [f"client-{i:07d}" for i in range(CLIENTS)]
    everyone = plan.charging.whom == "everyone"
    if rounds_before:  # an earlier run's charges: to all, or to those whose turn it was
        with Ledger.open(clients_path(directory), "before/1", unit="client", adjacency=plan.adjacency, make_directory=True) as book:
            for start in range(0, rounds_before, 500):
                who = [EVERYONE] * 500 if everyone else [names[(start + i) % COHORT] for i in range(500)]
                book.reserve([Charge(s, start + i, 0, plan.event(), plan.sha256, 1.0, "client", plan.adjacency) for i, s in enumerate(who)])
    subjects = plan.subjects(names)
    began = time.perf_counter()
    account = Account.open_run(directory, dict.fromkeys(subjects, plan), "now/1", lasting=True)
    opened = time.perf_counter() - began
    books = Books(
        PopulationBook("clients", account, True, lambda round_: True) if everyone else RunBook("clients", "client", account, True)
    )
    privacy = Guarantees([GuaranteePlan("client", [plan])])
    tasks = [ClientTask(i, names[i]) for i in range(COHORT)]
    reports = [ClientReport(c.index, c.name, "done") for c in tasks]
    took: Counter[str] = Counter()
    medians: dict[str, list[float]] = {"epsilon_ms": [], "round_ms": []}
    for round_ in range(ROUNDS):
        began = time.perf_counter()
        books.view(round_)
        books.authorize(round_, tasks)
        books.commit(round_, tasks, reports)
        middle = time.process_time()
        metrics = privacy.metrics(books.view(round_ + 1).groups, round_, 0, final=False)
        medians["epsilon_ms"].append((time.process_time() - middle) * 1e3)
        medians["round_ms"].append((time.perf_counter() - began) * 1e3)
        took["epsilon"] = metrics["privacy/epsilon"]
    account.close()
    return {"epsilon": took["epsilon"], "open_s": opened, **{k: statistics.median(v[2:]) for k, v in medians.items()}}


def main() -> None:
    """Measure all, print, keep."""
    figures: dict[str, Any] = {}
    for name, cohort in (
        ("participants", {"kind": "cyclic", "size": COHORT}),
        ("population", {"kind": "poisson", "fraction": COHORT / CLIENTS}),
    ):
        for before in (0, LATE):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(cohort, before, Path(folder) / "ledger")
            figures[f"{name}, round {before + 1}"] = {k: float(f"{v:.4g}") for k, v in found.items()}
            print(
                f"{name:13} round {before + 1:>6}: epsilon in {found['epsilon_ms']:.1f} ms, the round's books in {found['round_ms']:.1f} ms"
            )
    figures["clients"], figures["cohort"] = CLIENTS, COHORT
    figures["machine"] = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "books.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
