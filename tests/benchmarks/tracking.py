"""What tracking costs a run of many rounds and clients, and how long MLflow's pages then take; prints and keeps the figures.

``python -m tests.benchmarks.tracking [--rounds 10000] [--metrics 30] [--clients 10000]``. The training path is the call of the tracker
in each round; a sender beside it writes to a SQLite store. The time of a round with work of its own is measured with the sender at work and
after it has ended, so that what the sender takes from the interpreter is counted, too. Then a server of MLflow answers what its UI asks for: the list of runs, a
run, the sampled history of one metric, and a page of charts (all metrics, six requests at a time, as a browser sends them).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from fedray.tracking.journal import METRICS
from fedray.tracking.mlflow_store import load_mlflow
from fedray.tracking.mlflow_tracker import Tracker
from tests.benchmarks.__main__ import RESULTS, machine

_REPEATS = 5


def row(number: int, metrics: int) -> dict[str, Any]:
    """A round's row, in which every value is another one than before."""
    values = {f"eval/metric_{i}": (number * 31 + i) % 997 / 997 for i in range(metrics - 1)}
    return {"round": number, "time": 1.7e9 + number, "metrics": {"privacy/epsilon": number * 1e-3, **values}}


def work() -> float:
    """About a millisecond of a round's own work in Python."""
    return sum(i * 0.5 for i in range(20_000))


def finish(folder: Path, rounds: int, clients: int) -> None:
    """Write what a run leaves behind at its end."""
    names = [f"client-{i:05d}" for i in range(clients)]
    private = {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "budget": 8.0, "claim": "valid", "accountant": "pld"}
    spent = {"unit": "record", "participations_charged": 9, "of_this_run": 9, "epsilon": 8.0, "budget": 8.0, "rounds_left": 0}
    statement = {"summary": private, "clients": [{"name": name, **spent} for name in names]}
    files = {
        "summary.json": {"status": "completed", "name": "many", "rounds": rounds, "planned_rounds": rounds, "privacy": private},
        "partition.json": {"clients": clients, "rows": [{"client": name, "records": 100} for name in names]},
        "privacy_statement.json": statement,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def training_path(tracker: Tracker, folder: Path, rounds: int, metrics: int) -> tuple[list[float], list[float]]:
    """Seconds of each round's call of the tracker, and of call and own work together, while the sender is at work."""
    calls, with_ = list[float](), list[float]()
    with (folder / METRICS).open("a", encoding="utf-8") as journal:
        for number in range(1, rounds + 1):
            values = row(number, metrics)
            journal.write(json.dumps(values) + "\n")
            journal.flush()
            began = time.perf_counter()
            tracker.log(values)
            called = time.perf_counter()
            work()
            calls.append(called - began)
            with_.append(time.perf_counter() - began)
    return calls, with_


def figures(calls: list[float], with_: list[float], without: list[float]) -> dict[str, float]:
    """The figures of the training path."""
    centiles = statistics.quantiles(calls, n=100)
    return {
        "call_median_us": statistics.median(calls) * 1e6,
        "call_99th_percentile_us": centiles[98] * 1e6,
        "round_median_ms": statistics.median(with_) * 1e3,
        "round_without_median_ms": statistics.median(without) * 1e3,
        "added_median_ms": (statistics.median(with_) - statistics.median(without)) * 1e3,
    }


def pages(store: str, experiment: str, run_id: str, names: list[str]) -> dict[str, float]:
    """Seconds, medians, that a server over the store takes for what the UI asks, and how many of them its processes compute, means."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        store,
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    base = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow"

    def ask(path: str, body: dict[str, Any] | None = None, **query: Any) -> bytes:
        address = f"{base}/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def sampled(name: str) -> bytes:
        return ask("metrics/get-history-bulk-interval", run_ids=run_id, metric_key=name, max_results=320)

    def charts() -> None:
        with ThreadPoolExecutor(6) as browser:
            list(browser.map(sampled, names))

    try:
        limit = time.monotonic() + 180
        while True:
            try:
                ask("runs/get", run_id=run_id)
                break
            except OSError:
                if time.monotonic() > limit:
                    raise
                threading.Event().wait(0.2)
        asked: dict[str, Callable[[], object]] = {
            "list_of_runs": lambda: ask("runs/search", {"experiment_ids": [experiment], "max_results": 100}),
            "run": lambda: ask("runs/get", run_id=run_id),
            "history_of_a_metric": lambda: sampled(names[0]),
            "page_of_charts": charts,
        }
        found = {}
        for name, action in asked.items():
            before = _processor_seconds(server.pid)
            found[f"{name}_s"] = statistics.median(_seconds(action) for _ in range(_REPEATS))
            found[f"{name}_of_the_processor_s"] = (_processor_seconds(server.pid) - before) / _REPEATS
        return found
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process and its children have used."""
    top = psutil.Process(pid)
    times = [process.cpu_times() for process in (top, *top.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--metrics", type=int, default=30)
    parser.add_argument("--clients", type=int, default=10_000)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder, store = Path(scratch) / "runs" / "many", f"sqlite:///{scratch}/runs/mlflow.db"
        tracker = Tracker.open(folder, {"training.lr": "0.1"}, {}, uri=store, experiment="many", run_name="many")
        calls, with_ = training_path(tracker, folder, asked.rounds, asked.metrics)
        finish(folder, asked.rounds, asked.clients)
        began = time.perf_counter()
        assert tracker.close("FINISHED", 600.0)
        sent_after = time.perf_counter() - began
        found = figures(calls, with_, [_seconds(work) for _ in range(len(calls))]) | {"sent_after_s": sent_after}
        client = load_mlflow().MlflowClient(store)
        run = client.get_run(tracker.run_id)
        assert len(run.data.metrics) == asked.metrics
        found |= pages(store, run.info.experiment_id, tracker.run_id, sorted(run.data.metrics))
    result = {k: float(f"{v:.4g}") for k, v in found.items()}
    about = {"rounds": asked.rounds, "metrics": asked.metrics, "clients": asked.clients, "load_before": load}
    print(json.dumps(result | about, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tracking.json").write_text(json.dumps({**result, **about, **machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
