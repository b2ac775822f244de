"""Cells of papers' tables: each is one run of a config in ``tables/``, kept in ``build/published`` so that a stopped one goes on where it was.

Delete ``build/published`` to run all of them anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paths import ROOT
from published import CURVES, curve

import fedray

BUILD = ROOT / "build" / "published"
TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Cell:
    """What one run reached.

    Attributes:
        accuracies: on the test set, or the mean over clients, after each round.
        result: the run.
    """

    accuracies: list[float]
    result: fedray.Result

    def last(self, rounds: int = 1) -> float:
        """Mean accuracy of the last rounds."""
        return float(np.mean(self.accuracies[-rounds:]))


def cell(table: str, name: str, data: str, metric: str = "eval/accuracy", **overrides: Any) -> Cell:
    """Train one cell, go on with it, or read what it reached.

    Args:
        table: name of its config in ``tables/``.
        name: of the cell in its table, with its seed.
        data: ``data.source``.
        metric: that counts.
        overrides: keys of the config, with ``__`` for each dot.
    """
    output = BUILD / table / name
    given = [f"data.source={data}", "ray.address=local", "tracking.enabled=false", *settings(overrides)]
    result = fedray.run(TABLES / f"{table}.yaml", overrides=given, output=str(output), resume=output.exists())
    assert result.status != "interrupted", (
        f"{output} was stopped after {result.summary['rounds']} rounds; begin the test again to go on with it"
    )
    return Cell(curve(result, metric), result)


def settings(keys: Mapping[str, Any]) -> list[str]:
    """Overrides of a config: ``a.b=VALUE`` for each key ``a__b``."""
    return [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in keys.items()]


def keep_table(table: str, cells: dict[str, dict[str, Any]], **facts: Any) -> None:
    """Write the figures of some cells beside the paper's into ``curves/TABLE.json``; cells that are there already and not given stay."""
    CURVES.mkdir(exist_ok=True)
    file = CURVES / f"{table}.json"
    known = json.loads(file.read_text())["cells"] if file.exists() else {}
    content = {**facts, "cells": dict(sorted({**known, **cells}.items()))}
    file.write_text(json.dumps(content, indent=1) + "\n")
