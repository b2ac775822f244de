"""One client host in this process, on the device: its memory over rounds, and batches that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.gpu.record import Figures, Missed, Record
from tests.rounding import apart, steps_apart, terms_of

SECTION = "memory of one actor"
ROUNDS, RECORDS, CLASSES, SHAPE = 6, 128, 10, (1, 28, 28)
#: Memory beside what is there before, in bytes, of which 128 gradients of 1.66 million float32 (850 MB) do not fit into, but 16 do.
ROOM = 600 * 10**6


def run(record: Record) -> None:
    """All checks of the section."""
    record.check(SECTION, "does not grow over rounds", lambda: flat_over_rounds(record.device), takes=20, gpu=True)
    record.check(SECTION, "a batch that does not fit is halved", lambda: halved(record.device), takes=20, gpu=True)


def host_on(device: torch.device, physical: int) -> tuple[Any, Any, Any]:
    """A host of one client that trains FedAvg's CNN with a gradient for each record, its weights, and the client."""
    from fedray.clients.groups import make_groups
    from fedray.clients.host import ClientHost
    from fedray.clients.messages import ClientTask
    from fedray.clients.terms import Site, make_terms
    from fedray.configfile import build_config
    from fedray.data.records import Federation, Records
    from fedray.models.build import build_model
    from fedray.models.facts import first_model
    from fedray.parameters import Layout, get_vector
    from fedray.privacy.recordplan import plan_record

    draws = np.random.default_rng(0)
    records = Records(draws.standard_normal((RECORDS, *SHAPE), dtype=np.float32), draws.integers(0, CLASSES, RECORDS))
    data = Federation(["one"], records, np.array([0, RECORDS]), None, None, None, CLASSES)
    config = build_config(
        {
            "name": "gpu",
            "seed": 1,
            "rounds": ROUNDS,
            "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 1}},
            "model": {"kind": "fedavg_cnn"},
            "training": {
                "lr": 0.05,
                "sampling_rate": 1.0,
                "steps": 2,
                "expected_batch": float(RECORDS),
                "engine": "hooks",
                "physical_batch": physical,
            },
            "privacy": {"regime": "record", "noise_multiplier": 0.5, "delta": 1e-3, "insecure_seed": 3},
        }
    )
    group = make_groups(config, data.names)[0]
    facts = first_model(config.model, SHAPE, CLASSES, config.seed)[1]
    host = ClientHost(make_terms(config, group, plan_record(config, group.training), facts), Site(device=str(device)), data)
    host.ready()
    model = build_model(config.model, SHAPE, CLASSES, config.seed)
    return host, get_vector(model, Layout.of(model)), ClientTask(0, "one")


def round_of(host: Any, weights: Any, client: Any, number: int = 0) -> tuple[Any, Any]:
    """The client's report, and its update."""
    from fedray.clients.messages import RoundTask

    task = RoundTask(number, 1e3)
    (report,) = host.train(task, weights, [client])
    if report.status != "done":
        raise Missed(f"the client ended as {report.status}: {report.error}", {})
    total = host.collect(task).total
    return report, total.values * 2.0**-total.bits / total.weight


def flat_over_rounds(device: torch.device) -> Figures:
    """What is allocated after each round, and what torch has reserved."""
    host, weights, client = host_on(device, 32)
    allocated, reserved = [], []
    for number in range(ROUNDS):
        round_of(host, weights, client, number)
        torch.cuda.synchronize(device)
        allocated.append(torch.cuda.memory_allocated(device))
        reserved.append(torch.cuda.memory_reserved(device))
    figures = {"allocated": allocated, "reserved": reserved}
    if max(allocated[1:]) > allocated[0] or max(reserved[2:]) > reserved[1]:
        raise Missed("memory grew after the first rounds", figures)
    return figures


def halved(device: torch.device) -> Figures:
    """The physical batch that memory sufficed for, and the update beside that of a batch that fitted from the start."""
    from fedray.choices import ModelChoice
    from fedray.models.build import build_model

    host, weights, client = host_on(device, 16)
    _, expected = round_of(host, weights, client)
    host, weights, client = host_on(device, RECORDS)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + ROOM) / whole, device)
    try:
        report, found = round_of(host, weights, client)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    model = build_model(ModelChoice(kind="fedavg_cnn"), SHAPE, CLASSES, 1)
    bound = steps_apart(weights, weights + expected, terms_of(model, RECORDS * SHAPE[1] * SHAPE[2]), steps=2)
    figures = {"physical_batch": report.physical_batch, "asked": RECORDS, "apart": apart(found, expected), "bound": bound}
    if report.physical_batch is None or report.physical_batch not in (64, 32, 16, 8):
        raise Missed("the physical batch is none that halving leads to", figures)
    if figures["apart"] > bound:
        raise Missed("the update of halved batches is another", figures)
    return figures
