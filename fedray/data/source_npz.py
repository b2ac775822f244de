"""NumPy archives."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedray.components import nearest
from fedray.data.images import Channels, channels_first
from fedray.data.records import Label
from fedray.data.source import Raw, Source, Whole, build, existing
from fedray.errors import DataError


def npz(
    where: str,
    *,
    x: str = "x_train",
    y: str = "y_train",
    x_test: str = "x_test",
    y_test: str = "y_test",
    clients: str | None = None,
    clients_test: str | None = None,
    person: str | None = None,
    person_test: str | None = None,
    channels: Channels = "auto",
    classes: int | None = None,
    labels: Sequence[Label] | None = None,
) -> Source:
    """One .npz archive of arrays; a test set and natural clients may be in it.

    Args:
        where: path of the file.
        x: key of the training features; uint8 are images and become float32 in 0..1.
        y: key of the training labels; floats mean regression.
        x_test: key of the test features; there is a test set if both test keys are in the file.
        y_test: key of the test labels.
        clients: key of one value a training record that says whose it is, for the natural partition.
        clients_test: the same for the test records: with data.holdout.at=clients each client keeps its own.
        person: key of one value a training record that says whose it is. A person is held out, and dealt to a client, with all its records.
        person_test: the same for the test records.
        channels: where images have their channel axis: first, last, none, or auto.
        classes: labels are the integers 0..classes-1 and stay what they are; null = those found, numbered in sorted order.
        labels: the labels in class order, instead of classes.

    Raises:
        DataError: the file or a key is missing, or the arrays do not fit together.
    """

    def load() -> Raw:
        path = existing(where, "data.source")
        name = f"npz:{where}"
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{name}: cannot be read as a NumPy archive ({error}).") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{name}: holds one array, not an archive; save it with numpy.savez(path, x_train=..., y_train=...).")
        with archive:

            def read(key: str, argument: str) -> Any:
                if key not in archive.files:
                    raise DataError(
                        f"{name}: there is no array '{key}' (data.{argument}); it has {', '.join(archive.files)}."
                        f"{nearest(key, archive.files)}"
                    )
                try:
                    return archive[key]
                except (ValueError, OSError, zipfile.BadZipFile) as error:
                    raise DataError(f"{name}: the array '{key}' cannot be read ({error}).") from None

            train = channels_first(read(x, "x"), channels, name), read(y, "y")
            test = None
            if (x_test in archive.files) != (y_test in archive.files):
                raise DataError(f"{name}: has only one of '{x_test}' and '{y_test}'; name both or neither (data.x_test, data.y_test).")
            if x_test in archive.files:
                test = channels_first(read(x_test, "x_test"), channels, name), read(y_test, "y_test")
            groups = read(clients, "clients") if clients is not None else None
            test_groups = read(clients_test, "clients_test") if clients_test is not None else None
            persons = read(person, "person") if person is not None else None
            test_persons = read(person_test, "person_test") if person_test is not None else None
        if test_persons is not None and (test is None or persons is None):
            raise DataError(
                f"{name}: data.person_test goes with data.person and a test set ('{x_test}', '{y_test}'); give all, or leave it out."
            )
        if test_groups is not None and (test is None or groups is None):
            raise DataError(
                f"{name}: data.clients_test goes with data.clients and a test set ('{x_test}', '{y_test}'); give all, or leave it out."
            )
        return build(
            name,
            *train,
            test=test,
            groups=groups,
            test_groups=test_groups,
            classes=classes,
            labels=labels,
            persons=persons,
            test_persons=test_persons,
        )

    return Whole(load)


SOURCES = {"npz": npz}
