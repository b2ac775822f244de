"""Signed runs: what was changed of one is named, by `fedray verify` and by a script that knows nothing of fedray."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT
from signedruns import MUTATIONS, both, flip, signed_run

from fedray.cli import cli
from fedray.reporting.verifiedrun import verify_run
from fedray.secure.identities import read_key
from fedray.secure.signedlines import read_signed, sign_line

SCRIPT = ROOT / "tests" / "verify_receipts.py"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """A folder with two runs of the same silos, ``before`` and ``run``."""
    folder = tmp_path_factory.mktemp("signed")
    assert signed_run(folder, "before").status == "completed"
    assert signed_run(folder, "run", rounds=3).status == "completed"
    return folder


def verify(run: Path, keys: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["verify", str(run), "--keys", str(keys), *more])
    return result.exit_code, result.output


def test_a_run_is_verified_by_both_and_they_say_what_they_do_not_cover(signed: Path) -> None:
    code, said = verify(signed / "run", signed / "public")
    assert code == 0 and "NOT VERIFIED" not in said
    for sentence in (
        "5 lines signed by the driver (driver.pub, ",
        "6 updates are in models",
        "The 6 charges that receipts name are in the clients' ledgers",
        "The 3 rows of metrics",
        "has signed 3 updates, without a gap",
        "The receipts of client 'north' before number 3 are of other runs",  # the chain goes on over runs
        "not that a client's machine did what it says",
    ):
        assert sentence in said, sentence
    # Isolated, without the user's packages and with only what is installed beside cryptography; it must not need fedray.
    code_ = "import runpy, sys; sys.modules['fedray'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [str(SCRIPT), str(signed / "run"), "--keys", str(signed / "public")]
    done = subprocess.run([sys.executable, "-c", code_, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(SCRIPT.read_text().splitlines()) <= 250


def mutated(signed: Path, folder: Path, count: int) -> None:
    missed = []
    for k in range(count):
        draw, mutate, home = random.Random(k), MUTATIONS[k % len(MUTATIONS)], folder / str(k)
        shutil.copytree(signed / "run", home / "run")
        shutil.copytree(signed / "private", home / "private")
        mutation = mutate(home / "run", draw, signed / "before")
        for who, faults in zip(("command", "script"), both(home / "run", signed / "public"), strict=True):
            if not any(fault.startswith(mutation.file) for fault in faults):
                missed.append((k, mutate.__name__, mutation, who, faults))
        shutil.rmtree(home)
    assert not missed, f"{len(missed)} of {count} were missed, such as {missed[:3]}"


def test_what_is_changed_is_named_by_both(signed: Path, tmp_path: Path) -> None:
    mutated(signed, tmp_path, 100)


@pytest.mark.slow
def test_what_is_changed_is_named_by_both_a_thousand_times(signed: Path, tmp_path: Path) -> None:
    mutated(signed, tmp_path, 1000)


def test_a_chain_that_was_forked_between_runs_is_named(signed: Path, tmp_path: Path) -> None:
    run, other, keys = signed / "run", signed / "before", signed / "public"
    assert verify_run(run, keys, beside=[other]).faults == []
    code, said = verify(run, keys, "--beside", str(other))
    assert code == 0 and "The clients' chains go together with those of run before-" in said
    shutil.copytree(other, tmp_path / "forked")
    own, path = read_key(signed / "private" / "north.pem"), tmp_path / "forked" / "receipts.jsonl"
    for change, named in (
        ({"number": 4}, "number 4"),
        ({"time": "2020-01-01T00:00:00Z"}, "number 3"),
        ({"chain": "0" * 32}, "another chain"),
    ):
        forged = []
        for line in (other / "receipts.jsonl").read_bytes().splitlines():
            body = dict(read_signed(line).body)
            last = body["kind"] == "receipt" and body["client"] == "north" and body["run_number"] == 2
            forged.append(sign_line(body | change, own).line if last else line)
        path.write_bytes(b"\n".join(forged) + b"\n")
        faults = verify_run(run, keys, beside=[tmp_path / "forked"]).faults
        assert any(fault.startswith("receipts.jsonl: client 'north' has") and named in fault for fault in faults), (change, faults)


def test_keys_that_are_missing_or_anothers_are_named(signed: Path, tmp_path: Path) -> None:
    keys = tmp_path / "public"
    shutil.copytree(signed / "public", keys)
    (keys / "north.pub").write_text((keys / "south.pub").read_text())
    code, said = verify(signed / "run", keys)
    assert code == 1 and "is not signed by the key of 'north'" in said and "verified      " not in said
    (keys / "north.pub").unlink()
    assert "is signed for 'north', whose key is not among those given (as north.pub)" in verify(signed / "run", keys)[1]
    (keys / "driver.pub").unlink()
    code, said = verify(signed / "run", keys)
    assert code == 2 and "holds no driver.pub" in said
    (keys / "driver.pub").write_text("12")
    assert verify(signed / "run", keys)[0] == 2
    (tmp_path / "empty").mkdir()
    code, said = verify(tmp_path / "empty", signed / "public")
    assert code == 2 and "nobody has signed this run" in said


def test_what_commands_write_later_is_named_and_can_be_accepted(signed: Path, tmp_path: Path) -> None:
    shutil.copytree(signed / "run", tmp_path / "run")
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "run")]).exit_code == 0
    (tmp_path / "run" / "audit").mkdir()
    (tmp_path / "run" / "audit" / "audit.json").write_text("{}")
    for faults in both(tmp_path / "run", signed / "public"):
        assert {fault.partition(":")[0] for fault in faults} >= {"report.html", "report.md", "audit/audit.json"}
    assert both(tmp_path / "run", signed / "public", remade=True) == ([], [])
    code, said = verify(tmp_path / "run", signed / "public", "--remade")
    assert code == 0 and "report.html was added since the run has ended; commands that read a run write it" in said
    flip(tmp_path / "run", random.Random(5), signed)
    assert verify(tmp_path / "run", signed / "public")[0] == 1


@pytest.mark.usefixtures("cluster")
def test_a_run_that_is_resumed_is_signed_anew_and_goes_on_with_its_chains(tmp_path: Path) -> None:
    assert signed_run(tmp_path, rounds=2).status == "completed"
    before = (tmp_path / "run" / "receipts.jsonl").read_bytes()
    with pytest.raises(Exception, match="clients.signing: this run's rounds before are signed"):
        signed_run(tmp_path, resume=True, clients={"placement": "dedicated", "resources": {"cpu": 0.5}}, rounds=3)
    assert signed_run(tmp_path, resume=True, rounds=3).status == "completed"
    after = (tmp_path / "run" / "receipts.jsonl").read_bytes()
    assert after.startswith(before)
    kinds = [read_signed(line).body["kind"] for line in after.splitlines()]
    assert [kind for kind in kinds if kind != "receipt"] == ["start", "round", "round", "end", "start", "round", "end"]
    assert both(tmp_path / "run", tmp_path / "public") == ([], [])
    older = tmp_path / "private" / "north.receipts"
    older.write_bytes(b"".join(older.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(Exception, match="was brought back from an older copy"):
        signed_run(tmp_path, resume=True, rounds=4)
