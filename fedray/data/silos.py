"""What silos that are read apart from each other must agree on, and how their records are joined where one process reads all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.components import nearest
from fedray.data.records import ClientData, Federation, Indices, Records, offsets_of
from fedray.data.source import Silos
from fedray.errors import DataError
from fedray.inputs import Input, described


@dataclass(frozen=True)
class Silo:
    """The form and number of one silo's records, or of the driver's test set, which other processes may know.

    Attributes:
        name: the client's name in quotes, or another description.
        records: number of training records.
        held_out: number of test records.
        own_test: whether the test records are a test set of the source, and not held out at random.
        shape: shape of one record.
        target_shape: shape of one record's targets.
        tokens: whether records are integers.
        scale: divisor of the user's values.
        columns: names of the features if the source is a table.
        inputs: the inputs that stand side by side in a record.
        absent: names in ``data.drop`` that are no columns of the silo's table.
        persons: number of persons with training records; None if it is not known whose the records are.
        dropped: number of records that were left out because of missing cells; 0, too, where it is not told.
    """

    name: str
    records: int
    held_out: int
    own_test: bool
    shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    tokens: bool
    scale: float
    columns: tuple[str, ...]
    inputs: tuple[Input, ...]
    absent: tuple[str, ...]
    persons: int | None = None
    dropped: int = 0

    @classmethod
    def of(cls, client: ClientData, private: bool = True) -> Silo:
        """Describe a client's records; how many were left out only if they are not ``private``."""
        return cls(
            f"'{client.name}'",
            len(client.train),
            len(client.test) if client.test is not None else 0,
            client.own_test,
            tuple(client.train.x.shape[1:]),
            tuple(client.train.y.shape[1:]),
            client.train.x.dtype.kind == "i",
            client.scale,
            client.columns,
            client.inputs,
            client.absent,
            client.train.number_of_persons,
            0 if private else client.dropped,
        )


def check_silos(silos: Sequence[Silo], fraction: float, test: Silo | None = None) -> None:
    """Check that all silos' records have the same form, and that some records are held out for evaluation.

    Args:
        silos: all clients.
        fraction: ``data.holdout.fraction``.
        test: the driver's test set, if the source has one.

    Raises:
        DataError: the first silo that does not fit, or no record is held out although the config asks for it.
    """
    first = silos[0]
    for silo in [*silos[1:], *([test] if test is not None else [])]:
        if _features(silo) != _features(first):
            different = sorted(set(silo.columns) ^ set(first.columns))
            what = f"columns {', '.join(different)} stand in one only" if different else f"{_form(first)} and {_form(silo)}"
            raise DataError(
                f"data: clients {first.name} and {silo.name} have different features ({what}); name them in order with data.features, "
                "or leave out with data.drop what only some have."
            )
        if silo.target_shape != first.target_shape:
            raise DataError(
                f"data: the targets of a record of clients {first.name} and {silo.name} have shapes {first.target_shape} and "
                f"{silo.target_shape}; they must agree."
            )
    for name in first.absent:
        if all(name in silo.absent for silo in silos):
            raise DataError(f"data.drop: no client has a column '{name}'.{nearest(name, first.columns)}")
    odd = next((silo for silo in silos if silo.own_test != first.own_test), None)
    if odd is not None:
        with_test, without = (odd, first) if odd.own_test else (first, odd)
        raise DataError(f"data: client {with_test.name} has a test set of its own, client {without.name} has none; give all one, or none.")
    if test is None and not any(silo.held_out for silo in silos):
        if first.own_test:
            raise DataError("data.test_fold: no client has a record of the test fold, so nothing would be evaluated; check data.fold.")
        if fraction > 0:
            raise nothing_held_out(fraction, f"the records of each of {len(silos)} clients")


def check_classes(declared: int, classes: int | None) -> None:
    """Compare the classes of one silo's records, None in regression, with the number that was declared for all, 0 in regression.

    Raises:
        DataError: they differ.
    """
    if (classes or 0) != declared:
        raise DataError(
            f"data: this silo's records have {classes or 'no'} classes, and the run's have {declared or 'none'}; declare the same."
        )


def nothing_held_out(fraction: float, of: str) -> DataError:
    """Return the error for a ``data.holdout.fraction`` that rounds to no record."""
    return DataError(
        f"data.holdout.fraction: {fraction:g} of {of} rounds to none, so nothing would be evaluated; raise it, or set it to 0 to train on all."
    )


def join(source: Silos, clients: Sequence[ClientData], test: Records | None) -> Federation:
    """Join all silos' records to one federation; :func:`check_silos` must have passed."""
    first, tests = clients[0], [c.test for c in clients]
    held_out, held_out_offsets = None, None
    if any(t is not None for t in tests):
        held_out_offsets = offsets_of([len(t) if t is not None else 0 for t in tests])
        held_out = Records(np.concatenate([t.x for t in tests if t is not None]), np.concatenate([t.y for t in tests if t is not None]))
    return Federation(
        list(source.names),
        Records(np.concatenate([c.train.x for c in clients]), np.concatenate([c.train.y for c in clients]), _persons(clients)),
        offsets_of([len(c.train) for c in clients]),
        test,
        held_out,
        held_out_offsets,
        source.classes,
        first.columns,
        source.class_labels,
        True,
        first.scale,
        first.inputs,
        sum(client.dropped for client in clients),
    )


def _persons(clients: Sequence[ClientData]) -> Indices | None:
    """Whose each record is. Each silo numbers its own persons from 0, so those of different silos get different numbers here."""
    found, after = [], 0
    for client in clients:
        if client.train.persons is None:
            return None
        found.append(client.train.persons + after)
        after = int(found[-1].max()) + 1
    return np.concatenate(found)


def _features(silo: Silo) -> tuple[Any, ...]:
    return silo.columns, silo.shape, silo.tokens, silo.scale, silo.inputs


def _form(silo: Silo) -> str:
    divided = f" divided by {silo.scale:g}" if silo.scale != 1 else ""
    if silo.inputs:
        return described(silo.inputs)
    return f"{list(silo.columns) or silo.shape} {'int64' if silo.tokens else 'float32'}{divided}"
