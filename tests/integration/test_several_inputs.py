"""Records with several inputs through Ray: from shared memory and at dedicated silos, with the driver's evaluation and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import multimodal
import numpy as np
import pytest

import fedray


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_silos_alone_and_together_train_the_same_model_of_several_inputs(tmp_path: Path) -> None:
    def run(placement: str, source: dict[str, Any]) -> fedray.Result:
        config: dict[str, Any] = {
            "name": placement,
            "rounds": 6,
            "data": source,
            "model": {"kind": "python:multimodal:Net"},
            "clients": {"placement": placement, "resources": {"cpu": 0.5}},
            "training": {"lr": 0.2, "batch_size": 8, "epochs": 8},
            "evaluation": {"every": 0},
            "tracking": {"enabled": False},
        }
        return fedray.run(config, output=str(tmp_path / placement))

    hosted = run("hosted", {"source": "python:multimodal:clients", "classes": 2})
    alone = run("dedicated", {"source": "python:multimodal:Silos"})
    assert alone.summary["model_sha256"] == hosted.summary["model_sha256"]
    x, y = multimodal.records(200, 9)
    right = float((hosted.predict(x).argmax(1) == y).mean())
    assert right == pytest.approx(hosted.summary["final"]["eval/accuracy"])
    assert right > 0.8
    assert np.isfinite(hosted.summary["final"]["eval/loss"])
