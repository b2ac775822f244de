"""What secure aggregation costs a client and the driver, against sums without it in the same run; prints and keeps the figures.

``python -m tests.benchmarks.secure_sums``. A cohort of 100 with 1.66 million values each, on the sparse graph that it gets and with all
others as neighbours, with nobody and with ten members dropping out after they have shared their secrets; and a cohort of 1000 with few
values, which shows what does not depend on the model. Run it with OMP_NUM_THREADS=1: times are those of the processor.

Ratios are to what the same client does without a protocol, which is to add its update to the sum, and to what it sends then, which is its
part of the sum (8 bytes a value). Masks change nothing about the size of a part.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fedray.aggregation.exact import ExactSum
from fedray.secure.protocol import Ask, Order
from fedray.secure.secagg import SecAgg
from tests.benchmarks.__main__ import machine

RESULTS = Path(__file__).parent / "results"
VALUES = 1_660_000
MODEL = bytes(32)
CASES: dict[str, tuple[SecAgg, int, int, int]] = {
    "100, sparse": (SecAgg(), 100, VALUES, 0),
    "100, sparse, 10 drop out": (SecAgg(), 100, VALUES, 10),
    "100, complete": (SecAgg(complete=101), 100, VALUES, 0),
    "100, complete, 10 drop out": (SecAgg(complete=101), 100, VALUES, 10),
    "1000, sparse, 100 drop out, small model": (SecAgg(), 1000, 10_000, 100),
}


def measure(protocol: SecAgg, members: int, size: int, dropping: int) -> dict[str, Any]:
    """One attempt: milliseconds and bytes of a client by phase (means), and of the driver."""
    order = Order("benchmark", 0, 0, 5, "terms")
    clients = [protocol.member(order, i) for i in range(members)]
    update = np.random.default_rng(1).normal(0.0, 0.1, size).astype(np.float32)
    secure, plain = ExactSum.zero(size, members), ExactSum.zero(size, members)
    lost = set(range(dropping))
    client_s: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    received: Counter[str] = Counter()
    driver_s = 0.0
    conduct = protocol.conduct(order, members)
    step, answers, correct = next(conduct), {}, None
    while correct is None:
        phase, messages = (step.phase, step.messages) if isinstance(step, Ask) else ("mask", step.inbox)
        answers = {}
        for number, message in messages.items():
            if phase == "mask" and number in lost:
                continue
            if phase == "mask":
                client_s["add"] += added(secure, update)
            began = time.process_time()
            if phase == "mask":
                clients[number].ready(message, MODEL)
                clients[number].mask(secure.values)
            answers[number] = b"" if phase == "mask" else clients[number].answer(phase, message)
            client_s[phase] += time.process_time() - began
            sent[phase] += len(answers[number])
            received[phase] += len(message)
        began = time.process_time()
        try:
            step = conduct.send(answers)
        except StopIteration as stop:
            correct = stop.value
        driver_s += time.process_time() - began
    began = time.process_time()
    correct(secure.values)
    correction_s = time.process_time() - began
    for _ in range(members - len(lost)):
        added(plain, update)
    assert secure.values.tobytes() == plain.values.tobytes()
    total, part = sum(client_s.values()), 8 * size
    return {
        "client_ms": {phase: digits(1e3 * s / members) for phase, s in client_s.items()},
        "client_bytes_sent": {phase: round(n / members) for phase, n in sent.items()},
        "client_bytes_received": {phase: round(n / members) for phase, n in received.items()},
        "driver_ms": {"phases": digits(1e3 * driver_s), "correction": digits(1e3 * correction_s)},
        "driver_bytes": {"sent": received.total(), "received": sent.total()},
        "ratios": {
            "client_s / plain add": digits(total / client_s["add"]),
            "driver_s / plain adds of all": digits((driver_s + correction_s) / client_s["add"]),
            "client_bytes / part": digits((sent.total() + received.total()) / members / part),
        },
    }


def added(total: ExactSum, update: Any) -> float:
    """Seconds in which an update is added to a sum."""
    began = time.process_time()
    total.add(update)
    return time.process_time() - began


def digits(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def main() -> None:
    """Measure all, print, keep."""
    figures: dict[str, Any] = {}
    for name, case in CASES.items():
        figures[name] = found = measure(*case)
        print(f"{name}: {json.dumps(found)}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "secure_sums.json").write_text(json.dumps(figures | machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
