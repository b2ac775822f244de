"""The stage of the documentation is a complete one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, label_skewed

from fedray import components
from fedray.configfile import parse_yaml
from fedray.planning.combinations import check_only
from fedray.privacy.csprng import InsecureSeeded
from fedray.updates.pipeline import make_stages, sent_bytes
from fedray.updates.stage import At

PAGE = (Path(__file__).parents[2] / "docs" / "stages.md").read_text()
SECTIONS = [parse_yaml(text, "docs/stages.md") for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The sections that name the page's own stage."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_stages.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_stages", raising=False)
    return dict(SECTIONS[1])


def test_the_example_is_unbiased_and_runs(example: dict[str, Any]) -> None:
    config = config_of({"kind": "fedavg"}, **example)
    check_only(config)
    (stage,) = make_stages(config)
    x = np.linspace(-1, 1, 200, dtype=np.float32)
    draws = [stage.out(x, At(0, 0, 0, InsecureSeeded(k, 0, 0))).values for k in range(400)]
    assert np.abs(np.mean(draws, 0) - x).max() < 6 * 0.01 / 2 / np.sqrt(len(draws))  # a rounding has a deviation of half a step at most
    assert sent_bytes((stage,), 200) == 200
    federation, _ = label_skewed()
    runs = [Rehearsed(config, federation) for _ in range(2)]
    for cohort in ([0, 1, 2], [2, 3]):
        runs[0].train([cohort])
        runs[1].train([cohort[1:], cohort[:1]], order=[1, 0])
    assert runs[0].globals.tobytes() == runs[1].globals.tobytes()


def test_the_configs_of_the_page_are_good_ones() -> None:
    check_only(config_of({"kind": "fedavg"}, **SECTIONS[0], **SECTIONS[2]))


@pytest.mark.parametrize("room", ["compressions", "bounds", "downloads"])
def test_every_part_that_a_config_can_name_is_on_the_page(room: str) -> None:
    assert all(f"`{kind}`" in PAGE for kind in components.ROOMS[room].parts())
