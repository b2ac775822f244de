"""The examples of docs/own_parts.md as one run through Ray: a source, partitioner, normaliser, model, adapter, loss, metric, schedule, sampler and
server optimiser of the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paths import ROOT

import fedray
from fedray.runfiles import RunFiles

PAGE = (ROOT / "docs" / "own_parts.md").read_text()


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{k: merged(one[k], v) if k in one and isinstance(v, Mapping) else v for k, v in other.items()}}


@pytest.mark.usefixtures("cluster")
def test_the_pages_examples_run_together(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S):
        (work / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(work)
    config: dict[str, Any] = {"clients": {"actors": 1}, "tracking": {"enabled": False}}
    for text in re.findall(r"```yaml\n(?!# instead)(.*?)```", PAGE, re.S):
        config = merged(config, yaml.safe_load(text))
    result = fedray.run(config, output=tmp_path / "run")
    assert result.status == "completed"
    final = result.summary["final"]
    assert final["eval/in_top_two"] >= final["eval/accuracy"] > 0.6
    rows = [row["metrics"] for row in RunFiles(tmp_path / "run").rows()]
    assert [row["round/clients_completed"] for row in rows] == [2] * 6
    assert [row["train/lr"] for row in rows] == pytest.approx([0.5] * 3 + [0.1] * 3)

    import my_data

    *_, x, y = my_data.readings()
    assert np.mean(result.predict(x).argmax(1) == y) == pytest.approx(final["eval/accuracy"])  # the normaliser is inside
