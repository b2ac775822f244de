"""``fedray plan`` as a person runs it; a plan against the run that it foresaw: test_quickstart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from fedray.cli import cli

DIGITS = str(ROOT / "configs" / "digits.yaml")
SHORT = ["rounds=3", "data.partition={kind: iid, clients: 4}", "privacy.delta=2e-4", "training.steps=2"]


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "fedray", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=600,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def within(*arguments: str) -> tuple[int, str, str]:
    """The same in this process, which has imported everything already."""
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, done.stdout, done.stderr


def processor_seconds_of_children() -> float:
    return sum(os.times()[2:4])


@pytest.fixture(scope="module")
def seconds() -> float:
    """Processor seconds that a plan may take: twice what its libraries' import takes, on this machine as busy as it is.

    A plan takes 1.2 to 1.5 times that. Seconds alone would fail on a machine whose cores are shared.
    """
    began = processor_seconds_of_children()
    subprocess.run([sys.executable, "-c", "import torch, ray, opacus, sklearn.datasets, scipy.stats"], check=True, timeout=600)
    return 2 * (processor_seconds_of_children() - began)


def test_the_quickstart_is_planned_in_seconds_and_leaves_nothing_behind(tmp_path: Path, seconds: float) -> None:
    began = processor_seconds_of_children()
    code, out, err = command(tmp_path, "plan", DIGITS)
    assert code == 0, err
    assert processor_seconds_of_children() - began < seconds
    for phrase in ("digits: fits: epsilon 7.999", " more ", "largest epsilon 7.999", "for epsilon", "fits", "traffic", "memory"):
        assert phrase in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_thousand_clients_are_planned_as_fast(tmp_path: Path, seconds: float) -> None:
    began = processor_seconds_of_children()
    code, out, err = command(tmp_path, "plan", DIGITS, "data.partition={kind: iid, clients: 1000}")
    assert code == 0, err
    assert processor_seconds_of_children() - began < seconds
    assert "client-0000 and 999 more" in out


def test_a_budget_that_would_be_exceeded_is_exit_code_3_after_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*SHORT, "privacy.target_epsilon=null", "privacy.noise_multiplier=1.0", "privacy.budget=6"]
    code, out, err = within("plan", DIGITS, *given, "--json", "--plot", "plan.png")
    assert code == 3
    plan = json.loads(out)
    assert err.strip() == f"fedray: {plan['refusal']}"
    assert plan["lines"][0]["rows"][0]["verdict"] == "exceeds"
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--plot", "no/such/plan.png"], "--plot"), (["privacy.delta=0.4"], "privacy.delta.too_large")]
)
def test_bad_usage_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = within("plan", DIGITS, *SHORT, *arguments)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
