"""The algorithm of the documentation is a complete one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray import components

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()


def test_the_example_is_scaffold_in_under_sixty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(example.splitlines()) < 60
    (tmp_path / "my_scaffold_for_test.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scaffold_for_test", raising=False)
    federation, _ = label_skewed()
    runs = [
        Rehearsed(config_of(part), federation)
        for part in ({"kind": "python:my_scaffold_for_test:MyScaffold"}, {"kind": "scaffold", "weights": "uniform"})
    ]
    for cohort in ([0, 1, 2], [2, 3], [0, 3]):
        for run in runs:
            run.train([cohort])
    np.testing.assert_allclose(runs[0].globals, runs[1].globals, rtol=0, atol=1e-6)


@pytest.mark.parametrize("room", ["algorithms", "servers"])
def test_every_part_that_a_config_can_name_is_on_the_page(room: str) -> None:
    assert all(f"`{kind}`" in PAGE for kind in components.ROOMS[room].parts())
