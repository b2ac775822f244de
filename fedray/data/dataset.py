"""Loads the records of a config's data section and deals them to the clients.

The same section and seed give the same bytes in any process: a client that loads only its own records gets those that it has in the whole
federation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from fedray import rng
from fedray.components import PARTITIONERS, SOURCES, TRANSFORMS, check_arguments, configured, find, is_own, nearest
from fedray.config import Data
from fedray.data.holdout import split
from fedray.data.leftout import of_deal, of_source, staying
from fedray.data.partition import Deal, check_parts, natural
from fedray.data.records import ClientData, Features, Federation, Indices, Label, Numbered, Records, offsets_of
from fedray.data.silos import Silo, check_silos, join, nothing_held_out
from fedray.data.source import Raw, Silos, Source, gather
from fedray.data.transforms import Apply, Floats, Transform, check_in_torch, checked
from fedray.data.whose import expanded, units
from fedray.errors import DataError, blaming
from fedray.inputs import described


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which client gets which records of a whole source.

    Attributes:
        names: names of the clients.
        train: each client's training records.
        client_test: each client's test records, or None.
        driver_test: the driver's held-out records, or None.
        own_test: whether ``client_test`` has indices into the source's test set, and not into its training set.
    """

    names: Sequence[str]
    train: Deal
    client_test: Deal | None
    driver_test: Indices | None
    own_test: bool = False


def check(data: Data) -> None:
    """Check the data section without reading a record.

    Raises:
        DataError: parts of the section contradict each other, or a file does not exist.
        ConfigError: unknown parts or arguments.
    """
    source = _source(data)
    transform = transform_of(data)
    partitioner = _partitioner(data)
    if isinstance(source, Silos):
        if partitioner.func is not natural:
            raise DataError(
                f"data.partition.kind: {data.source} has one place a client, "
                f"which cannot be dealt anew by '{data.partition.kind}'; use natural."
            )
        if transform.private_statistics and source.test is not None:
            raise _no_statistics(data)
    elif transform.private_statistics and data.holdout.at == "driver" and data.holdout.fraction > 0:
        raise _no_statistics(data)
    clients = partitioner.keywords.get("clients")
    if isinstance(clients, int) and clients < 1:
        raise DataError(f"data.partition.clients: should be 1 or more, but is {clients}.")


def per_silo(data: Data) -> bool:
    """Return whether each client has its own place, which no other process needs to read."""
    return isinstance(_source(data), Silos)


def declared_labels(data: Data) -> Sequence[Label]:
    """Return the label of each class of a source with one place per client; empty in regression and for other sources."""
    source = _source(data)
    return source.class_labels if isinstance(source, Silos) else ()


def private_statistics(data: Data) -> bool:
    """Return whether ``data.normalize`` computes statistics over a client's records, which record-level privacy does not cover."""
    return transform_of(data).private_statistics


def client_names(data: Data, seed: int) -> Sequence[str]:
    """Return the names of the clients in order; reads records only if these contain the names.

    Raises:
        DataError, ConfigError: see :func:`load_federation`.
    """
    check(data)
    source = _source(data)
    if isinstance(source, Silos):
        return list(source.names)
    partitioner = _partitioner(data)
    if not is_own(data.partition.kind) and "clients" in partitioner.keywords:
        numbered = Numbered(partitioner.keywords["clients"])
        return [numbered[int(k)] for k in staying(numbered, data.without)] if data.without else numbered
    raw = source.load()
    if partitioner.func is natural and raw.groups is not None:
        return list(raw.group_names)
    return _plan(data, raw, seed).names


def load_federation(data: Data, seed: int) -> Federation:
    """Read all records and deal them to the clients.

    A source with one place per client is read client by client; its held-out records stay at the clients whatever ``data.holdout.at`` says.

    Raises:
        DataError: the data is missing or differs from what the section says.
        ConfigError: unknown parts or arguments.
    """
    check(data)
    source = _source(data)
    transform = transform_of(data)
    if isinstance(source, Silos):
        clients, test = [_silo_client(data, source, transform, seed, name) for name in source.names], silo_test(data)
        check_silos([Silo.of(client) for client in clients], data.holdout.fraction, None if test is None else test[1])
        return join(source, clients, None if test is None else test[0])
    raw = _refuse_normalizer(data, source.load())
    transform = transform.of(raw.columns)
    plan = _plan(data, raw, seed)
    offsets, train = plan.train.offsets, _records(raw, plan.train.order)
    held_out, held_out_offsets = None, None
    if plan.client_test is not None:
        held_out_offsets, held_out = plan.client_test.offsets, _held_out(raw, plan, plan.client_test.order)
    if transform.private_statistics:
        for k in range(len(plan.names)):
            apply = transform.fit(_floats(train.x[offsets[k] : offsets[k + 1]]))
            _apply_in_place(apply, train.x, int(offsets[k]), int(offsets[k + 1]))
            if held_out is not None and held_out_offsets is not None:
                _apply_in_place(apply, held_out.x, int(held_out_offsets[k]), int(held_out_offsets[k + 1]))
    else:
        apply = transform.fit(_floats(train.x[:0]))
        train = _applied(apply, train)
        held_out = _applied(apply, held_out) if held_out is not None else None
    return Federation(
        plan.names,
        train,
        offsets,
        _driver_test(data, raw, plan, transform),
        held_out,
        held_out_offsets,
        raw.classes,
        raw.columns,
        raw.class_labels,
        raw.declared,
        raw.scale,
        raw.inputs,
        raw.dropped,
    )


def load_client(data: Data, seed: int, name: str) -> ClientData:
    """Load one client's records, with the same bytes as ``load_federation(data, seed).client(k)``.

    Of a source with one place per client only this client's place is read.

    Raises:
        DataError: no such client exists, or see :func:`load_federation`.
    """
    check(data)
    source = _source(data)
    transform = transform_of(data)
    if isinstance(source, Silos):
        _index(source.names, name, data)
        return _silo_client(data, source, transform, seed, name)
    if _partitioner(data).func is natural and (raw := source.load()).groups is None:  # a silo's own table, which is all its own
        return _silo_client(data, Silos((name,), lambda _: raw, raw.classes, raw.class_labels), transform, seed, name)
    raw = _refuse_normalizer(data, source.load())
    transform = transform.of(raw.columns)
    plan = _plan(data, raw, seed)
    k = _index(plan.names, name, data)
    test = _held_out(raw, plan, plan.client_test[k]) if plan.client_test is not None else None
    return _client(raw, transform, name, plan.train[k], test, plan.own_test)


def silo_test(data: Data) -> tuple[Records, Silo] | None:
    """Load the driver's test set of a source with one place per client, with its form; None without such a set.

    Raises:
        DataError: see :func:`load_federation`.
    """
    source, transform = _source(data), transform_of(data)
    if not isinstance(source, Silos) or source.test is None:
        return None
    raw = _refuse_normalizer(data, source.test())
    records = _records(raw, np.arange(len(raw.y)))
    test = _applied(transform.of(raw.columns).fit(_floats(records.x[:0])), records)
    form = ClientData("", test, None, raw.classes, raw.columns, raw.scale, raw.inputs)
    return test, replace(Silo.of(form), name="the test set")


def source_arguments(data: Data) -> dict[str, Any]:
    """Return the source's arguments, converted to its types: a category ``true`` in the config becomes 1.

    Raises:
        ConfigError: an argument is unknown, missing or of the wrong type.
    """
    factory = find(SOURCES, data.source.partition(":")[0])
    return check_arguments(factory, data.arguments, "data", own=("where",))


def _source(data: Data) -> Source:
    kind, separator, where = data.source.partition(":")
    if not separator or not where:
        raise DataError(f"data.source: '{data.source}' should read KIND:WHERE, such as sklearn:digits or npz:mnist.npz.")
    source = cast(Source, find(SOURCES, kind)(where, **source_arguments(data)))
    return of_source(source, data.without, _partitioner(data).func is natural) if data.without else source


def _partitioner(data: Data) -> partial[Any]:
    return configured(PARTITIONERS, data.partition.kind, data.partition.arguments)


def transform_of(data: Data) -> Transform:
    """Build the transform that ``data.normalize`` names.

    Raises:
        ConfigError: the transform is not known, or does not take the arguments.
    """
    kind, where = data.normalize.kind, _normalizer(data)
    factory = configured(TRANSFORMS, kind, data.normalize.arguments)
    with blaming(where, DataError):
        made = factory()
    if not isinstance(made, Transform):
        raise DataError(f"{where} should return a fedray.data.transforms.Transform, but returned {type(made).__name__}.")
    return checked(made, where) if is_own(kind) else made


def check_own_transform(data: Data, shape: tuple[int, ...]) -> None:
    """Compare the two forms of the user's own transform.

    Args:
        data: the section.
        shape: of one record's features.

    Raises:
        DataError: see :func:`fedray.data.transforms.check_in_torch`.
    """
    if is_own(data.normalize.kind):
        check_in_torch(transform_of(data), shape, _normalizer(data))


def _normalizer(data: Data) -> str:
    return f"data.normalize.kind: '{data.normalize.kind}'"


def _refuse_normalizer(data: Data, raw: Raw) -> Raw:
    if raw.inputs and data.normalize.kind != "none":
        raise DataError(
            f"data.normalize.kind: {data.normalize.kind} is for records of one array, but those of {data.source} have the inputs "
            f"{described(raw.inputs)}; use none, and normalise in the source."
        )
    if raw.x.dtype == np.int64 and data.normalize.kind != "none":
        raise DataError(
            f"data.normalize.kind: {data.normalize.kind} needs real-valued features, "
            f"but those of {data.source} are integers, which are taken for tokens; use none, or give measurements as floats (float32)."
        )
    return raw


def _no_statistics(data: Data) -> DataError:
    return DataError(
        f"data.normalize.kind: {data.normalize.kind} uses each client's own statistics, which the driver's test set does not have; "
        "set data.holdout.at=clients (or data.holdout.fraction=0) with a source without a test set, or use constants."
    )


def _plan(data: Data, raw: Raw, seed: int) -> _Plan:
    partitioner = _partitioner(data)
    by_source = partitioner.func is natural
    n = len(raw.y)
    own_test = by_source and data.holdout.at == "clients" and raw.test is not None and raw.test_groups is not None
    pool: Indices = np.arange(n)
    driver_test: Indices | None = None
    holdout = data.holdout
    splits = raw.test is None and holdout.fraction > 0
    if splits and holdout.at == "driver":
        kept = raw.groups if by_source else None
        pool, driver_test = split(raw.y, holdout.fraction, holdout.stratify is not False, rng.generator(seed, "holdout"), kept, raw.persons)
        if not len(driver_test):
            raise nothing_held_out(holdout.fraction, f"{n} records" + (" (each client keeps one)" if kept is not None else ""))
    labels, groups = raw.y[pool], raw.groups[pool] if raw.groups is not None else None
    whole = None if raw.persons is None or by_source else units(raw.persons[pool], labels)  # persons are dealt with all their records
    if whole is not None:
        labels, groups = whole[2], None if groups is None else groups[whole[1]]
    with blaming(f"data.partition.kind: '{data.partition.kind}'", DataError):
        dealt = check_parts(partitioner(labels, groups, rng.generator(seed, "partition")), len(labels), "data.partition")
    parts = Deal(pool[dealt.order], dealt.offsets) if whole is None else Deal.of([pool[expanded(whole[0], part)] for part in dealt])
    names: Sequence[str] = list(raw.group_names) if by_source else Numbered(len(parts))
    client_test: Deal | None = None
    if splits and holdout.at == "clients":
        pairs = [_hold_out(data, raw, part, seed, name) for name, part in zip(names, parts, strict=True)]
        parts, client_test = Deal.of([train for train, _ in pairs]), Deal.of([test for _, test in pairs])
        if not len(client_test.order):
            raise nothing_held_out(holdout.fraction, f"the records of each of {len(names)} clients")
    if own_test and raw.test_groups is not None:
        client_test = _own_tests(data, raw.test_groups, len(names))
    if data.without and not by_source:
        stay = staying(names, data.without)
        names, parts, client_test = [names[int(k)] for k in stay], cast(Deal, of_deal(parts, stay)), of_deal(client_test, stay)
    return _Plan(names, parts, client_test, driver_test, own_test)


def _own_tests(data: Data, groups: Indices, clients: int) -> Deal:
    """Deal the source's test records to their clients."""
    strangers = np.flatnonzero(groups < 0)
    if len(strangers):
        raise DataError(
            f"{data.source}: {len(strangers)} test records, the first is record {strangers[0] + 1}, are of clients without training records; "
            "remove them, or set data.holdout.at=driver to evaluate on all test records together."
        )
    return Deal(np.argsort(groups, kind="stable"), offsets_of(np.bincount(groups, minlength=clients)))


def _hold_out(data: Data, raw: Raw, part: Indices, seed: int, name: str) -> tuple[Indices, Indices]:
    holdout, persons = data.holdout, None if raw.persons is None else raw.persons[part]
    train, test = split(raw.y[part], holdout.fraction, bool(holdout.stratify), rng.generator(seed, "holdout", name), None, persons)
    return part[train], part[test]


def _index(names: Sequence[str], name: str, data: Data) -> int:
    if name not in names:
        raise DataError(f"{data.source}: there is no client '{name}' among its {len(names)}.{nearest(name, names)}")
    return names.index(name)


def _records(raw: Raw, index: Indices) -> Records:
    return Records(gather(raw.x, index), raw.y[index], None if raw.persons is None else raw.persons[index])


def _held_out(raw: Raw, plan: _Plan, index: Indices) -> Records:
    if plan.own_test and raw.test is not None:
        return Records(gather(raw.test[0], index), raw.test[1][index])
    return _records(raw, index)


def _floats(x: Features) -> Floats:
    return cast(Floats, x)


def _applied(apply: Apply, records: Records) -> Records:
    return replace(records, x=cast(Features, apply(_floats(records.x))))


def _apply_in_place(apply: Apply, x: Features, start: int, stop: int) -> None:
    if stop > start:
        x[start:stop] = apply(_floats(x[start:stop]))


def _client(raw: Raw, transform: Transform, name: str, train: Indices, test: Records | None, own_test: bool) -> ClientData:
    own = _records(raw, train)
    apply = transform.fit(_floats(own.x if transform.private_statistics else own.x[:0]))
    held_out = _applied(apply, test) if test is not None and len(test) else None
    return ClientData(
        name, _applied(apply, own), held_out, raw.classes, raw.columns, raw.scale, raw.inputs, own_test, raw.absent, raw.dropped
    )


def _silo_client(data: Data, source: Silos, transform: Transform, seed: int, name: str) -> ClientData:
    raw = _refuse_normalizer(data, source.load(name))
    train: Indices = np.arange(len(raw.y))
    test: Records | None = None
    if raw.test is not None:
        test = Records(gather(raw.test[0], np.arange(len(raw.test[1]))), raw.test[1])
    elif data.holdout.fraction > 0 and source.test is None:
        train, held_out = _hold_out(data, raw, train, seed, name)
        test = _records(raw, held_out)
    return _client(raw, transform.of(raw.columns), name, train, test, raw.test is not None)


def _driver_test(data: Data, raw: Raw, plan: _Plan, transform: Transform) -> Records | None:
    if plan.own_test:
        return None
    if raw.test is not None:
        x, y = raw.test
        test = Records(gather(x, np.arange(len(y))), y)
    elif plan.driver_test is not None and len(plan.driver_test):
        test = _records(raw, plan.driver_test)
    else:
        return None
    if transform.private_statistics:
        raise _no_statistics(data)
    return _applied(transform.fit(_floats(test.x[:0])), test)
