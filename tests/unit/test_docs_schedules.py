"""The schedule of the documentation is a complete one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from fedray import components
from fedray.configfile import build_config
from fedray.planning.preparation import prepare

PAGE = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()


def test_the_example_is_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,), (_, sections) = re.findall(r"```python\n(.*?)```", PAGE, re.S), re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_schedules.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_schedules", raising=False)
    raw = {
        "name": "t",
        "rounds": 2,
        "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 12}},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1},
    }
    schedule = prepare(build_config({**raw, **yaml.safe_load(sections)})).schedule
    assert (schedule.carries, schedule.needed(3, 0), schedule.concurrent(3)) == (True, 1, 10)
    assert [schedule.factor(s) for s in (0, 1, 3)] == [256, 181, 128]


def test_every_schedule_that_a_config_can_name_is_on_the_page() -> None:
    assert all(f"`{kind}`" in PAGE for kind in components.PACINGS.parts())
    assert all(f"| `{kind}`" in PAGE for kind in components.SAMPLERS.parts())
