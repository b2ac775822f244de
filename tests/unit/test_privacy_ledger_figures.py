"""What verification recomputes: commits, receipts, and a run's own figures."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedray.cli import cli
from fedray.errors import LedgerError
from fedray.privacy.accounting.accountant import FINAL_INTERVAL, bound
from fedray.privacy.accounting.events import Event, Gaussian, Poisson, SelfComposed
from fedray.privacy.ledger import inspect
from fedray.privacy.ledger.chain import VERSION, Charge, read, seal
from fedray.privacy.ledger.ledger import Ledger
from fedray.privacy.ledger.location import clients_path, records_path
from fedray.privacy.ledger.verification import verify
from fedray.rounding import rounded_up

Q, NOISE, DELTA = Fraction(1, 4), 1.3, 1e-5
TERMS = {"delta": DELTA, "steps": 5, "sampling_rate": [1, 4], "noise_multiplier": NOISE, "clip": 1.0, "interval": 1e-3, "engine": "hooks"}
PLAN = "p" * 64


def event(steps: int = 5) -> Event:
    return SelfComposed(steps, Poisson(Q, Gaussian(NOISE)))


def receipt(entry: str, **more: Any) -> dict[str, Any]:
    said = {"steps": 5, "sampling_rate": [1, 4], "noise_multiplier": NOISE, "clip": 1.0, "engine": "hooks", "data": "d" * 64}
    return {"reservation": entry, "plan": PLAN, **said, **more}


def book(path: Path, terms: dict[str, Any] | None = None, **more: Any) -> None:
    """One charge, committed with a receipt."""
    with Ledger.open(path, "run/1") as ledger:
        ledger.describe(PLAN, TERMS if terms is None else terms)
        (head,) = ledger.reserve([Charge("a", 3, 1, event(), PLAN, 1.0, data="d" * 64)])
        ledger.commit(3, 1, {"a": receipt(head.sha256, **more)})


def test_a_receipt_of_what_was_reserved_passes(tmp_path: Path) -> None:
    book(tmp_path / "x.jsonl")
    assert verify(tmp_path / "x.jsonl").commits == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("reservation", "0" * 64, "names the reservation 000000000000..., but what was reserved is"),
        ("plan", "q" * 64, "names the plan"),
        ("steps", 4, "says steps 4, but 5 was charged"),
        ("sampling_rate", [1, 5], r"says sampling_rate \[1, 5\], but \[1, 4\] was charged"),
        ("noise_multiplier", 1.2, "says noise_multiplier 1.2, but 1.3 was charged"),
        ("clip", 2.0, "says clip 2.0, but 1.0 was charged"),
        ("engine", "plain", "says engine 'plain', but 'hooks' was planned"),
        ("data", "e" * 64, "says data"),
    ],
)
def test_a_receipt_of_something_else_is_found(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = tmp_path / "x.jsonl"
    book(path, **{key: value})
    with pytest.raises(LedgerError, match=rf"x.jsonl: line 4: round 3, attempt 1 of 'a': its receipt {said}.*\(reserved in line 3\).*void"):
        verify(path)


def test_fewer_steps_than_planned_are_right_where_they_were_charged(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        ledger.describe(PLAN, TERMS)
        (head,) = ledger.reserve([Charge("a", 0, 0, event(2), PLAN, 1.0)])
        ledger.commit(0, 0, {"a": receipt(head.sha256, steps=2)})
        verify(ledger.path)
        (head,) = ledger.reserve([Charge("a", 1, 0, event(7), PLAN, 1.0)])
        ledger.commit(1, 0, {"a": receipt(head.sha256, steps=7)})
        with pytest.raises(LedgerError, match="line 6: .*steps 7, but 5 was planned"):
            verify(ledger.path)


def test_a_clip_norm_that_adapts_is_not_compared(tmp_path: Path) -> None:
    book(tmp_path / "x.jsonl", terms={**TERMS, "adaptive_clip": {"quantile": 0.5}}, clip=0.7)
    verify(tmp_path / "x.jsonl")


def test_a_receipt_without_a_described_plan_is_found(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "x.jsonl", "run/1") as ledger:
        (head,) = ledger.reserve([Charge("a", 0, 0, event(), PLAN, 1.0)])
        ledger.commit(0, 0, {"a": receipt(head.sha256)})
    with pytest.raises(LedgerError, match="line 3: .*which no earlier note describes"):
        verify(tmp_path / "x.jsonl")


@pytest.mark.parametrize(("job", "round"), [("run/1", 1), ("run/2", 0), ("other/1", 0)])
def test_a_commit_of_what_its_job_never_reserved_is_found(tmp_path: Path, job: str, round: int) -> None:
    """Forged with a whole chain: no writer of ours would write it."""
    path = tmp_path / "x.jsonl"
    with Ledger.open(path, "run/1") as ledger:
        ledger.reserve([Charge("a", 0, 0, event(), PLAN, 1.0)])
    last = list(read(path))[-1]
    body = {
        "v": VERSION,
        "seq": last.seq + 1,
        "prev": last.sha256,
        "kind": "commit",
        "job": job,
        "subject": "a",
        "round": round,
        "attempt": 0,
    }
    path.write_bytes(path.read_bytes() + seal(body)[0])
    with pytest.raises(
        LedgerError, match=rf"x.jsonl: line 3: round {round}, attempt 0 of 'a' is committed by job '{job}', which did not reserve it"
    ):
        verify(path)


# -- a run's figures ------------------------------------------------------------------------------


def finished(run: Path, lasting: Path | None = None, unit: str = "record") -> Path:
    """A run of three rounds with two clients, as its output directory looks; returns its book."""
    (run / "ledger").mkdir(parents=True)
    (run / "config.yaml").write_text("name: x\n")
    (run / "run.json").write_text('{"id": "run", "starts": 1}')
    path = (records_path if unit == "record" else clients_path)(lasting or run / "ledger")
    with Ledger.open(path, "run/1", unit=unit) as ledger:
        ledger.describe(PLAN, TERMS)
        for r in range(3):
            ledger.reserve([Charge(s, r, 0, event(), PLAN, 1.0, unit) for s in ("a", "b")[: 1 + (r > 0)]])
        counts = {s: ledger.charges(s) for s in ("a", "b")}
        head = ledger.head.sha256
    figures = {"unit": unit, "epsilon": bound({event(): 3}, DELTA, FINAL_INTERVAL), "delta": DELTA, "ledger_sha256": head}
    rows = [{"name": s, "participations_charged": n, "epsilon": bound({event(): n}, DELTA)} for s, n in counts.items()]
    save(run / "summary.json", {"privacy": figures})
    save(run / "privacy_statement.json", {"summary": figures, "ledger": {"head_sha256": head}, "clients": rows})
    if lasting is not None:
        save(run / "ledger" / "records.part.json", {"book": str(path), "head": {"sha256": head}})
    assert isinstance(path, Path)
    return path


def test_both_lines_of_joint_use_are_compared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(run)
    coarse = Gaussian(4.0)
    with Ledger.open(clients_path(run / "ledger"), "run/1", unit="client", adjacency="replace_one") as ledger:
        ledger.describe("q" * 64, {"delta": 1e-3})
        ledger.reserve([Charge("clients", 0, 0, coarse, "q" * 64, 1.0, "client", "replace_one")])
        head = ledger.head.sha256
    summary, statement = (json.loads((run / name).read_text()) for name in ("summary.json", "privacy_statement.json"))
    figures = {"unit": "client", "epsilon": bound({coarse: 1}, 1e-3, FINAL_INTERVAL, "replace_one"), "delta": 1e-3}
    rows = [
        {"unit": "client", "name": "clients", "participations_charged": 1, "epsilon": bound({coarse: 1}, 1e-3, adjacency="replace_one")}
    ]
    heads = {"records": statement["ledger"]["head_sha256"], "clients": head}
    summary["privacy"]["joint"] = statement["summary"]["joint"] = figures
    save(run / "summary.json", summary)
    save(run / "privacy_statement.json", {**statement, "ledger": {"head_sha256": heads}, "clients": statement["clients"] + rows})
    assert len(list(inspect.verify_all(run))) == 4
    figures["epsilon"] *= 0.9
    save(run / "summary.json", summary)
    with pytest.raises(LedgerError, match=r"summary.json: epsilon \(unit client\) is said to be"):
        list(inspect.verify_all(run))


def save(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change(path: Path, **figures: Any) -> None:
    """Set figures of the summary, or of the statement's first client."""
    data = json.loads(path.read_text())
    (data["privacy"] if "privacy" in data else data["clients"][0]).update(figures)
    save(path, data)


@pytest.mark.parametrize("unit", ["record", "client"])
def test_figures_that_follow_from_the_entries_pass(tmp_path: Path, unit: str) -> None:
    finished(tmp_path / "run", unit=unit)
    lines = list(inspect.verify_all(tmp_path / "run"))
    assert "5 charges to 2 clients" in lines[0]
    assert f"largest epsilon {rounded_up(bound({event(): 3}, DELTA))} at delta 1e-05" in lines[0]
    assert "the figures of 2 clients follow from" in lines[1]


def test_a_lasting_book_is_compared_as_it_was_when_the_run_ended(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    path = finished(tmp_path / "run", tmp_path / "volume")
    with Ledger.open(path, "another/1") as ledger:
        ledger.reserve([Charge("a", 0, 0, event(), PLAN, 1.0)])
    assert "6 charges" in next(iter(inspect.verify_all(tmp_path / "run")))
    assert len(list(inspect.verify_all(tmp_path / "run"))) == 2
    (tmp_path / "volume").rename(tmp_path / "away")
    with pytest.raises(LedgerError, match="cannot be read"):
        list(inspect.verify_all(tmp_path / "run"))


def test_an_accountant_made_anew_each_round_is_found(tmp_path: Path) -> None:
    """The commonest false figure of federated runs: epsilon of the last round, given as that of all."""
    finished(tmp_path / "run")
    change(tmp_path / "run" / "privacy_statement.json", epsilon=bound({event(): 1}, DELTA))
    with pytest.raises(LedgerError, match=r"privacy_statement.json: epsilon of 'a' is said to be .*records.jsonl says .*do not rely on it"):
        list(inspect.verify_all(tmp_path / "run"))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"epsilon": bound({event(): 3}, DELTA, FINAL_INTERVAL) * (1 - 3e-6)}, r"summary.json: epsilon \(unit record\) is said to be"),
        ({"epsilon": "infinity"}, "is said to be infinity"),
        ({"ledger_sha256": "0" * 64}, "summary.json: the head of the ledger is said to be 0000"),
    ],
)
def test_a_summary_that_differs_is_found(tmp_path: Path, figures: dict[str, Any], said: str) -> None:
    finished(tmp_path / "run")
    change(tmp_path / "run" / "summary.json", **figures)
    with pytest.raises(LedgerError, match=said):
        list(inspect.verify_all(tmp_path / "run"))


def test_a_summary_older_than_the_last_charge_is_found(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    with Ledger.open(path, "run/2") as ledger:
        ledger.reserve([Charge("b", 3, 0, event(), PLAN, 1.0)])
    with pytest.raises(
        LedgerError, match=r"summary.json: was written at entry 6 of .*, but the run was charged 1 times after that \(first in line 9"
    ):
        list(inspect.verify_all(tmp_path / "run"))


def test_a_book_that_was_rolled_back_is_found_by_the_head_in_the_summary(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    verify(path)
    with pytest.raises(LedgerError, match="records.jsonl: lacks the entry .* rolled back"):
        list(inspect.verify_all(tmp_path / "run"))


def test_the_command_line_says_it_and_fails(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    good = CliRunner().invoke(cli, ["ledger", "verify", str(tmp_path / "run")])
    assert good.exit_code == 0
    assert "follow from" in good.output
    shown = CliRunner().invoke(cli, ["ledger", "show", str(tmp_path / "run"), "--json"])
    assert json.loads(shown.output)["books"][0]["clients"][0]["participations_charged"] == 3
    change(tmp_path / "run" / "summary.json", epsilon=0.5)
    bad = CliRunner().invoke(cli, ["ledger", "verify", str(tmp_path / "run")])
    assert bad.exit_code == 1
    assert "is said to be 0.5" in bad.output
