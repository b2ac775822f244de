"""The data of the golden runs; imports nothing from fedray, so that any revision can run it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np


def images(clients: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images with a pattern for each of ten classes, for ``python:goldenparts:images``.

    Returns:
        Records [clients * records, 1, 28, 28] float32 and labels [clients * records] int64.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, clients * records)
    patterns = rng.standard_normal((10, 1, 28, 28), dtype=np.float32)
    return rng.standard_normal((len(y), 1, 28, 28), dtype=np.float32) + np.float32(0.2) * patterns[y], y


def write_silos(folder: Path) -> None:
    """Three CSV files of 80 to 120 records with two measurements, a category and a label, one file for each silo."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, records in (("east", 80), ("north", 100), ("west", 120)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["age", "pressure", "kind", "ill"])
            for _ in range(records):
                age, pressure, kind = rng.integers(30, 80), rng.integers(100, 180), rng.integers(1, 4)
                rows.writerow([age, pressure, kind, int(age + pressure / 2 + 10 * rng.standard_normal() > 125)])
