"""Estimates a run's memory, traffic and actors from its config."""

from __future__ import annotations

import os
from typing import Any

from fedray.aggregation.each import SEGMENT_VALUES
from fedray.aggregation.rule import make_rule
from fedray.algorithms.algorithm import make_server
from fedray.clients.inbox import shares_sums
from fedray.clients.placement import ACTOR_MEMORY, asks, plan_places
from fedray.config import Training
from fedray.planning.global_model import Model
from fedray.planning.preparation import Prepared
from fedray.updates.download import down_bytes, make_coder
from fedray.updates.pipeline import make_stages, sent_bytes

_FLOAT = 4
_GRID = 8  # bytes of one value of an exact sum
#: Bytes of partial sums that a driver adds up per second on one core, as ``python -m tests.benchmarks.nodes`` measures.
SUM_RATE = 1e10


def footprint(prepared: Prepared, nodes: int = 1) -> dict[str, Any]:
    """Estimate what a run needs on a cluster of ``nodes`` nodes.

    Returns:
        JSON data: ``memory`` (bytes), ``traffic`` and ``actors``; figures that depend on the model's size are None without it. ``traffic``
        is in bytes between the driver's node and all nodes with client actors, each of which gets the weights once per round; ``parts``
        partial sums reach the driver per round, one per node with ``clients.node_sums``, else one per actor; ``sum_seconds`` is the time
        that the driver takes to add them up. Sparse sums of updates are counted in full; ``update`` is what one update takes after the
        config's stages, None where there are none. With an aggregation rule of single updates, ``parts`` are the updates of the largest
        cohort, and ``sum_seconds`` is None.
    """
    config, p = prepared.config, prepared
    most = p.most_at_once
    free = {"CPU": float(config.ray.cpus or os.cpu_count() or 1), "GPU": float(config.ray.gpus or 0)}
    places = plan_places(config, p.groups, p.names, free, most, elastic=True)
    asked: dict[str, float] = {}
    for place in places:
        for name, amount in asks(place.resources).items():
            asked[name] = asked.get(name, 0.0) + amount
    exchange, stages = None if p.model is None else p.model.exchange, make_stages(config)
    busy = min(len(places), most)
    homes = min(nodes, busy)
    each = make_rule(config.aggregation).wants == "each"
    parts, value = (most, _FLOAT) if each else (homes if config.clients.node_sums else busy, _GRID)
    up, down = (
        (None, None) if exchange is None else (parts * exchange.up_size * value, homes * down_bytes(make_coder(config.download), exchange))
    )
    return {
        "memory": None if p.model is None else _memory(prepared, p.model, -(-most // busy)),
        "traffic": {
            "nodes": nodes,
            "parts": parts,
            "up_per_round": up,
            "down_per_round": down,
            "update": sent_bytes(stages, exchange.up_size) if stages and exchange is not None else None,
            "up_per_node": None if up is None else up / homes,
            "down_per_node": None if down is None else down / homes,
            "sum_seconds": None if up is None or each else up / SUM_RATE,
            "in_all": None if up is None or down is None else (up + down) * config.rounds,
        },
        "actors": {
            "placement": config.clients.placement,
            "number": len(places),
            "number_is": "as many as free CPUs or GPUs allow"
            if config.clients.placement == "hosted" and config.clients.actors == "auto"
            else "as the config says",
            "resources": asked,
            "largest_cohort": most,
            "evaluator": asks(config.evaluation.resources),
        },
    }


def _memory(prepared: Prepared, made: Model, share: int) -> dict[str, Any]:
    """Return bytes of memory, for actors that train ``share`` clients a round; activations are not counted, because they depend on the
    model's layers.
    """
    config, p, size = prepared.config, prepared, made.facts.layout.size + made.facts.personal.size
    model, largest = size * _FLOAT, None if p.sizes is None else int(p.sizes.max(initial=1))
    batch = max(min(g.training.physical_batch, largest or g.training.physical_batch) for g in p.groups)
    gradients = batch * model if made.engine == "hooks" else 0
    state = max(_optimiser(g.training) for g in p.groups) * model
    server = sum(int(v.nbytes) for v in make_server(config.server).init(made.exchange.model_size).values())
    data = 0 if p.federation is None else sum(int(a.nbytes) for a in (p.federation.train.x, p.federation.train.y))
    held = data if config.clients.placement == "hosted" or p.sizes is None else data * int(p.sizes.max()) // max(1, int(p.sizes.sum()))
    rule, up, broadcast = make_rule(config.aggregation), made.exchange.up_size, made.exchange.down_size * _FLOAT
    each, remembered = rule.wants == "each", sum(int(v.nbytes) for v in rule.begin(len(p.names), up).values())
    total = share * up * _FLOAT if each else up * _GRID
    shared = not each and shares_sums(total, config.clients.node_sums, config.cohort.deadline, bool(config.privacy.regimes))
    actor = ACTOR_MEMORY + made.frozen_bytes + broadcast + 2 * model + state + gradients + (0 if shared else total)
    return {
        "engine": made.engine,
        "parameters": made.facts.layout.size,
        "model": model,
        "frozen": made.frozen_bytes,
        "optimiser": state,
        "per_record_gradients": gradients,
        "sum": total,
        "sum_lies": "once a node, shared" if shared else "in each actor, then in its node's store" if each else "in each actor",
        "physical_batch": batch,
        "actor": actor + (held if config.clients.apart else 0),
        "data": held,
        "data_lies": "once a node, shared" if config.clients.placement == "hosted" else "at the largest client",
        "server_optimiser": server,
        "driver": made.frozen_bytes
        + 2 * broadcast
        + (2 * _FLOAT * SEGMENT_VALUES + rule.held(p.most_at_once) if each else total)
        + server
        + remembered,
        "checkpoint": broadcast + server + remembered,
    }


def _optimiser(training: Training) -> int:
    """Return the number of values that the local optimiser keeps per parameter."""
    if training.optimizer != "sgd":
        return 2
    return int(training.momentum > 0)
