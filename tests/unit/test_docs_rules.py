"""The aggregation rule of the documentation is a complete one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray import components

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()


def test_the_example_is_a_median_that_remembers_in_under_fifteen_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert sum(bool(line.strip()) for line in example.splitlines()) < 15  # without blank lines
    (tmp_path / "my_rule_for_test.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rule_for_test", raising=False)
    federation, _ = label_skewed()
    own = {"kind": "python:my_rule_for_test:SlowMedian"}
    plain, still, slow = (
        Rehearsed(config_of({"kind": "fedavg"}, aggregation=rule), federation)
        for rule in ({"kind": "median"}, {**own, "momentum": 0.0}, own)
    )
    for split in ([[0, 1], [2, 3, 4]], [[4, 2], [1]]):
        for run in (plain, still, slow):
            run.train(split)
    np.testing.assert_allclose(still.globals, plain.globals, rtol=0, atol=1e-6)
    assert not np.allclose(slow.globals, plain.globals, rtol=0, atol=1e-4)


def test_every_rule_that_a_config_can_name_is_on_the_page() -> None:
    assert all(f"`{kind}`" in PAGE for kind in components.AGGREGATORS.parts())
