"""The command line: what it lists, shows and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from fedray.cli import cli
from fedray.components import ROOMS


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("room", [name for name, room in ROOMS.items() if room.parts()])
def test_everything_that_can_be_named_is_listed_with_a_line(room: str) -> None:
    code, out, _ = invoke("list", room)
    assert code == 0
    for name in ROOMS[room].parts():
        assert any(line.startswith(name) and len(line.split()) > 2 for line in out.splitlines()), name


def test_brackets_in_descriptions_are_shown() -> None:
    assert "'fedray[hf]'" in invoke("list", "data")[1]


def test_unknown_lists_are_refused() -> None:
    code, _, err = invoke("list", "modles")
    assert code == 2
    assert "Did you mean 'models'?" in err


def test_config_prints_what_can_be_read_again(tmp_path: Path) -> None:
    code, out, _ = invoke("config", str(ROOT / "configs" / "digits.yaml"), "rounds=3")
    assert code == 0
    (tmp_path / "again.yaml").write_text(out)
    assert invoke("config", str(tmp_path / "again.yaml"))[1] == out
    assert json.loads(invoke("config", "--schema")[1])["title"] == "fedray run"
    assert invoke("config")[0] == 2


def test_errors_carry_their_exit_code(tmp_path: Path) -> None:
    code, _, err = invoke("ledger", "show", str(tmp_path))
    assert code == 1
    assert "holds no privacy ledger" in err
    code, _, err = invoke("sync", str(tmp_path))
    assert code == 2
    assert "no output directory of a tracked run" in err


def test_help_is_quick() -> None:
    """Listing commands must not import torch, ray or mlflow."""
    code = "import sys; from fedray import cli; sys.exit(bool({'torch', 'ray', 'mlflow', 'opacus'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=600).returncode == 0
