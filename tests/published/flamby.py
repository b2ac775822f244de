"""The heart disease data of four hospitals in FLamby's split (Ogier du Terrail et al. 2022)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from fedray.data.records import Federation, Records, offsets_of

CENTRES = ("cleveland", "hungarian", "switzerland", "va")
#: Overrides of ``configs/heart*.yaml`` for the files of :func:`write_split`.
SPLIT = ["data.fold=part", "data.drop=[]"]


def write_split(real_data: Path, folder: Path) -> Path:
    """Write the complete records of each centre, with a column that says which are its test set; returns ``folder``."""
    for name in CENTRES:
        table = pd.read_csv(real_data / "heart" / f"{name}.csv").drop(columns=["slope", "ca", "thal"]).dropna()
        sick = (table["target"] > 0).astype(int)
        stratify = sick if sick.value_counts().min() > 2 else None
        _, test = train_test_split(np.arange(len(table)), test_size=1 - 0.66, train_size=0.66, random_state=43, stratify=stratify)
        table["part"] = np.where(np.isin(np.arange(len(table)), test), "test", "train")
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def pooled(federation: Federation) -> Federation:
    """One client with all training records."""
    return Federation(["all"], federation.train, offsets_of([len(federation.train)]), None, None, None, federation.classes)


def only(federation: Federation, k: int) -> Federation:
    """The federation of its k-th client."""
    rows = slice(int(federation.offsets[k]), int(federation.offsets[k + 1]))
    records = Records(federation.train.x[rows], federation.train.y[rows])
    return Federation([federation.names[k]], records, offsets_of([len(records)]), None, None, None, federation.classes)
