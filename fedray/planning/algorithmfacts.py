"""What an algorithm exchanges, what it keeps and which guarantees it goes with, as its exchange, its traits and the checks of a run say it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedray.algorithms.algorithm import make_algorithm
from fedray.configfile import build_config
from fedray.exchange import Exchange, Field
from fedray.models.facts import first_model
from fedray.planning.compatibility import BASE, Feature, features, grounds, merged, verdict
from fedray.traits import Traits


@dataclass(frozen=True)
class AlgorithmFacts:
    """What is shown of an algorithm beside its description, each in words.

    Attributes:
        down: the fields that the driver broadcasts.
        up: the fields that a client sends.
        keeps: what stays with a client or with the driver between rounds.
        reads: what a client computes of its records besides its training.
        combined: the regimes and the secure sums that a run may have with it.
    """

    down: str
    up: str
    keeps: str
    reads: str
    combined: str


def algorithm_facts(only: str | None = None) -> dict[str, AlgorithmFacts]:
    """The facts of every algorithm that a config can name, or of one, with the arguments of its row in the table of combinations."""
    return {row.name: _facts(row) for row in features() if row.section == "algorithms" and only in (None, row.name)}


def _facts(row: Feature) -> AlgorithmFacts:
    config = build_config(merged(BASE, row.ways[0]))
    algorithm = make_algorithm(config.algorithm)
    layout = first_model(config.model, (64,), 10, config.seed, personal=algorithm.personal)[1].layout
    exchange, size = algorithm.exchange(layout), layout.size
    return AlgorithmFacts(
        down=_fields([f for f in exchange.fields if f.down], size),
        up=_fields([f for f in exchange.fields if f.up], size),
        keeps="; ".join(_kept(algorithm.traits, exchange, bool(algorithm.personal), size)) or "nothing",
        reads=", ".join([*sorted(algorithm.traits.reads), *(["gradients, where it is measured"] if algorithm.traits.adapted else [])])
        or "nothing",
        combined="; ".join(_combined(row)) or "none",
    )


def _fields(fields: list[Field], size: int) -> str:
    return ", ".join(_field(f, size) for f in fields)


def _field(field: Field, size: int) -> str:
    if field.size == size:
        return field.name
    if field.size % size == 0 and field.size < size * size:
        return f"{field.name} ({field.size // size} times the model's size)"
    return f"{field.name} (1 value)" if field.size == 1 else field.name


def _kept(traits: Traits, exchange: Exchange, personal: bool, size: int) -> Iterator[str]:
    if personal:
        yield "client: its personal layers"
    elif traits.state:
        yield "client: vectors of its own"
    kept = [f for f in exchange.fields if not (f.down or f.up)]
    if kept:
        yield f"driver: {_fields(kept, size)}"


def _combined(row: Feature) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for ground in grounds():
        cell = verdict(row, ground)
        if cell is not None and cell.allowed:
            found.setdefault(cell.beside, []).append(ground)
    for beside, names in found.items():
        yield ", ".join(names) + (f" with {beside}" if beside else "")
