"""The logged model in an environment that is built from what was logged, and the exported graph by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_served import CASES, FRESH, Run

from fedray.data import rows


@pytest.mark.slow
def test_the_logged_model_predicts_as_in_memory_in_an_environment_built_from_what_was_logged(tmp_path: Path) -> None:
    """Of digits, breast-cancer and heart; the environment is made by pip, torch first, as the quickstart says."""
    python, command, expected = str(tmp_path / "venv" / "bin" / "python"), [], dict[Path, np.ndarray]()
    needed = set[str]()
    for name, (config, rows_of) in CASES.items():
        chosen = config()
        if chosen is None:
            continue
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, chosen)
        raw, _ = rows_of(run)
        folder, made = run.saved().folder / "model", tmp_path / f"{name}.made.npy"
        given = tmp_path / f"{name}.{'npy' if isinstance(raw, np.ndarray) else 'parquet'}"
        np.save(given, raw) if isinstance(raw, np.ndarray) else raw.to_parquet(given)
        needed |= set((folder / "requirements.txt").read_text().split())
        command += [str(folder), str(given), str(made)]
        expected[made] = run.result.predict(raw)
    assert {line.partition("==")[0] for line in needed} == {"mlflow", "torch", "numpy", "pandas"} and all("==" in line for line in needed)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    first = [line for line in needed if line.startswith("torch==")]
    for step in (
        [sys.executable, "-m", "venv", str(tmp_path / "venv")],
        [*pip, *first],
        [*pip, *sorted(needed)],
        [python, "-c", FRESH, *command],
    ):
        done = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
    for made, outputs in expected.items():
        np.testing.assert_allclose(np.load(made).reshape(outputs.shape), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_the_exported_graph_gives_the_same_outputs(tmp_path: Path, name: str) -> None:
    found = next(case for case in CASES if case.replace("_", "-") == name)
    config, rows_of = CASES[found]
    chosen = config()
    assert chosen is not None
    run = Run(tmp_path, chosen)
    raw, _ = rows_of(run)
    (graph,) = (run.saved().folder / "model").rglob("*.pt2")
    x = raw if isinstance(raw, np.ndarray) else rows.RowEncoder([{"name": c} for c in run.federation.columns])(raw)
    with torch.no_grad():
        given = torch.export.load(graph).module()(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    np.testing.assert_allclose(given, run.result.predict(raw).reshape(given.shape), rtol=1e-5, atol=1e-6)
