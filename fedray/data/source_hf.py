"""Data sets of the Hugging Face hub, or saved by its `datasets` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.components import nearest
from fedray.data.arrow import ArrowColumns, Only, shape_arrow
from fedray.data.folds import TestFold, check_fold
from fedray.data.source import Raw, Source, Whole
from fedray.data.table import Cell, MissingRows, Table
from fedray.errors import ConfigError, DataError


def hf(
    where: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    train: str = "train",
    test: str | None = None,
    label: str | Sequence[str] | None = None,
    image: str | None = None,
    silo: str | None = None,
    person: str | None = None,
    fold: str | None = None,
    test_fold: TestFold | None = None,
    only: Only | None = None,
    classes: int | None = None,
    label_threshold: float | None = None,
    labels: Sequence[Cell] | None = None,
    regression: bool = False,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing_rows: MissingRows = "refuse",
    categories: Mapping[str, Sequence[Cell]] | None = None,
    drop_first: bool = False,
) -> Source:
    """A Hugging Face data set of images or plain columns; needs ``pip install 'fedray[hf]'``.

    Args:
        where: name on the hub, or a folder written by ``DatasetDict.save_to_disk``.
        subset: the data set's configuration, where it has several.
        revision: a commit or tag, so that the data cannot change under the run.
        train: name of the training split.
        test: name of the test split; null = ``test`` if there is one.

    The other arguments are those of the parquet source.

    Raises:
        ConfigError: the `datasets` library is not installed.
        DataError: the data set, a split, column, image or cell is not as declared.
    """
    check_fold(fold, test_fold, test)
    table = Table(
        label or "label",
        label_threshold,
        labels,
        classes,
        regression,
        features,
        drop,
        missing_rows,
        categories,
        drop_first,
        silo,
        person,
    )
    columns = ArrowColumns(image, label, table, fold, test_fold, only)

    def load() -> Raw:
        name = f"hf:{where}"
        splits = _open(where, subset, revision, name)
        wanted = [("train", train)]
        if test is not None or ("test" in splits and fold is None):
            wanted.append(("test", test or "test"))
        tables = []
        for argument, split in wanted:
            if split not in splits:
                raise DataError(
                    f"{name}: there is no split '{split}' (data.{argument}); it has {', '.join(splits)}.{nearest(split, splits)}"
                )
            tables.append(splits[split].with_format("arrow")[:])  # images stay in their stored encoding
        return shape_arrow(tables[0], tables[1] if len(tables) > 1 else None, columns, name)

    return Whole(load)


def _open(where: str, subset: str | None, revision: str | None, name: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError("data.source: hf needs the datasets library; run pip install 'fedray[hf]'.") from None
    try:
        if Path(where).expanduser().is_dir():
            opened = datasets.load_from_disk(str(Path(where).expanduser()))
        else:
            opened = datasets.load_dataset(where, subset, revision=revision)
    except Exception as error:  # the library raises dozens of kinds, from urllib's to its own
        raise DataError(
            f"{name}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})."
        ) from error
    return opened if isinstance(opened, Mapping) else {"train": opened}


SOURCES = {"hf": hf}
