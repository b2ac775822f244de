"""What encrypted sums cost a client and the driver, against sums without them in the same run; prints and keeps the figures.

``python -m tests.benchmarks.encrypted_sums``. Ten clients with 1.66 million values each. Run it with OMP_NUM_THREADS=1: times are those of the
processor, medians over the clients. Ratios are to what the same client does without a protocol, which is to add its update to the sum, and to what
it sends then, which is its part of the sum (8 bytes a value).
"""

from __future__ import annotations

import json
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from fedray.aggregation.exact import ExactSum
from fedray.secure.bfv import Bfv
from fedray.secure.ckks import Ckks
from fedray.secure.consortium import make_consortium_key
from fedray.secure.encrypted import Encrypted
from fedray.secure.protocol import Ask, Order, SealedValues, Train
from tests.benchmarks.__main__ import machine
from tests.benchmarks.secure_sums import MODEL, RESULTS, VALUES, digits

CLIENTS = 10
Found = TypeVar("Found")


class Clock:
    """The processor's seconds of what is done, by its name."""

    def __init__(self) -> None:
        self.seconds = defaultdict[str, list[float]](list)

    def __call__(self, name: str, act: Callable[..., Found], *arguments: Any) -> Found:
        """Do something and keep its time."""
        began = time.process_time()
        try:
            return act(*arguments)
        finally:
            self.seconds[name].append(time.process_time() - began)


def measure(protocol: Encrypted) -> dict[str, Any]:
    """One attempt: seconds of a client and of the driver, and bytes."""
    order, clock = Order("benchmark", 0, 0, 5, "terms"), Clock()
    members = [protocol.member(order, i) for i in range(CLIENTS)]
    update = np.random.default_rng(1).normal(0.0, 0.01, VALUES).astype(np.float32)
    parts, plain = [ExactSum.zero(VALUES, CLIENTS) for _ in members], ExactSum.zero(VALUES, CLIENTS)
    for part in [*parts, plain]:
        part.values.fill(0)  # memory that was used before
    ExactSum.zero(VALUES, CLIENTS).add(update)  # the first time costs more
    conduct, sums, travelled = protocol.conduct(order, CLIENTS), list[SealedValues](), list[bytes]()
    step, total = next(conduct), np.zeros(VALUES, dtype=np.int64)
    while True:
        if isinstance(step, Ask):
            answers = {n: clock(step.phase, members[n].answer, step.phase, m) for n, m in step.messages.items()}
        elif isinstance(step, Train):
            for member, part in zip(members, parts, strict=True):
                clock("add", part.add, update)
                member.ready(b"", MODEL)
                member.mask(part.values)
                sealed = clock("encrypt", member.seal, part.values, [member])
                travelled.append(pickle.dumps(sealed))
            answers = dict.fromkeys(step.inbox, b"")
        else:
            sums = [pickle.loads(sent) for sent in travelled]
            for other in sums[1:]:
                clock("add ciphertexts", sums[0].add, other)
            answers = {0: clock("write the sum", sums[0].data)}
        try:
            step = conduct.send(answers)
        except StopIteration as stop:
            stop.value(total)
            break
    for part in parts:
        clock("add sums", plain.merge, part)
    scale = 2.0**plain.bits
    error = float(np.abs(total - plain.values).max() / np.abs(plain.values).max())
    seconds = {name: median(taken) for name, taken in clock.seconds.items()}
    sent, opened = len(travelled[0]), sums[0].nbytes
    return {
        "client_s": {"encrypt": digits(seconds["encrypt"]), "open, one client": digits(seconds["open"])},
        "driver_s": {"add a part": digits(seconds["add ciphertexts"]), "write the sum": digits(seconds["write the sum"])},
        "plain_s": {"add an update": digits(seconds["add"]), "add a part": digits(seconds["add sums"])},
        "bytes": {"part": sent, "plain part": 8 * VALUES, "sum to the opener": opened, "from the opener": 8 * VALUES},
        "ratios": {
            "encrypt / plain add": digits(seconds["encrypt"] / seconds["add"]),
            "add a part / plain": digits(seconds["add ciphertexts"] / seconds["add sums"]),
            "part / plain part": digits(sent / (8 * VALUES)),
            "part / float32 update": digits(sent / (4 * VALUES)),
        },
        "error": {"relative to the largest": error, "absolute in the sum": error * float(np.abs(plain.values).max()) / scale},
    }


def main() -> None:
    """Measure all, print, keep."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as keys:
        for protocol in (Bfv, Ckks):
            path = Path(keys) / protocol.scheme.name
            make_consortium_key(protocol.scheme, path)
            figures[path.name] = found = measure(protocol(str(path)))
            print(f"{path.name}: {json.dumps(found)}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "encrypted_sums.json").write_text(json.dumps(figures | machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
