"""The script that a GPU runs (``make gpu``), where there is none: what it records, and that it says what it did not check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as script
from tests.gpu import one_actor
from tests.gpu.record import Missed, Record

CPU = torch.device("cpu")


def raises(error: Exception) -> Any:
    def run() -> Any:
        raise error

    return run


def test_every_check_has_a_line_whatever_comes_of_it() -> None:
    record = Record(CPU, 100.0)
    record.check("s", "good", lambda: {"ratio": 2.0})
    record.check("s", "missed", raises(Missed("too far", {"apart": 1.0})))
    record.check("s", "broken", raises(ValueError("else")))
    record.check("s", "lacking", raises(ModuleNotFoundError("No module named 'ray'")))
    record.check("s", "long", dict, takes=101.0)
    record.check("s", "a GPU's", dict, gpu=True)
    found = [(check["name"], check["status"], check["figures"]) for check in record.document()["checks"]]
    assert found == [
        ("good", "passed", {"ratio": 2.0}),
        ("missed", "failed", {"apart": 1.0}),
        ("broken", "failed", {}),
        ("lacking", "not run", {}),
        ("long", "not run", {}),
        ("a GPU's", "not run", {}),
    ]
    assert record.failed
    assert record.document()["device"] == "cpu"
    assert "Not checked: s, lacking (No module named 'ray')." in record.said()
    assert "nothing was shown about any GPU" in record.said()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_ends_well_and_keeps_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        before = sorted(script.RESULTS.parent.rglob("*.json"))
        assert script.main(["--only", "memory"]) == 0
        assert sorted(script.RESULTS.parent.rglob("*.json")) == before
        assert script.main(["--only", "memory", "--out", str(tmp_path / "found.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "Not checked: memory of one actor, does not grow over rounds (no GPU)." in capsys.readouterr().out
    assert '"status": "not run"' in (tmp_path / "found.json").read_text()


def test_its_actor_trains_on_the_cpu_too() -> None:
    report, update = one_actor.round_of(*one_actor.host_on(CPU, 16))
    assert report.physical_batch is None
    assert abs(update).max() > 0
