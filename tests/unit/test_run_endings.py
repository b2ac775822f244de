"""The starts of a run, and the sentence on how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedray.configfile import build_config
from fedray.experiment.origin import Origin
from fedray.experiment.request import Request
from fedray.experiment.starting import note_start
from fedray.privacy.account import Account
from fedray.privacy.recordplan import plan_record
from fedray.rounds.books import Books, RunBook
from fedray.runfiles import RunFiles
from fedray.tracking.starts import STARTS, StartNote, ending, read_starts

STOPPED = {"status": "budget_reached", "rounds": 5, "planned_rounds": 15, "privacy": {"unit": "record", "budget": 5.0, "epsilon": 4.9251}}


def start(number: int = 1, after: int = 0, given_up: int = 0, spent: float = 0.0) -> StartNote:
    return StartNote(number, 1.0, after, given_up, {"record": spent})


@pytest.mark.parametrize(
    ("summary", "starts", "says"),
    [
        ({"status": "completed", "rounds": 60, "planned_rounds": 60}, [start()], "completed all 60 rounds"),
        (STOPPED, [start(spent=4.4931)], "stopped by its budget of 5 after 5 of 15 rounds; 4.50 of 4.93 was spent by earlier runs"),
        (STOPPED, [start()], "stopped by its budget of 5 after 5 of 15 rounds"),
        (
            {"status": "budget_reached", "rounds": 59, "planned_rounds": 60, "privacy": {"unit": "record", "budget": 8, "epsilon": 7.99}},
            [start(), start(2, 27, 1, 3.0)],
            "stopped by its budget of 8 after 59 of 60 rounds; resumed at round 28; the round given up is charged, so it ends one round short",
        ),
        (
            {"status": "completed", "rounds": 60, "planned_rounds": 60},
            [start(), start(2, 27, 1), start(3, 30, 2)],
            "completed all 60 rounds; resumed at round 28 and 1 more time; the 3 rounds given up are charged",
        ),
        ({"status": "completed", "rounds": 60, "planned_rounds": 60}, [start(2)], "completed all 60 rounds"),
        ({"status": "interrupted", "rounds": 3, "planned_rounds": 9}, [], "interrupted after 3 of 9 rounds, --resume continues it"),
        (
            {"status": "failed", "rounds": 3, "planned_rounds": 9, "error": "the disk is full."},
            [],
            "failed after 3 of 9 rounds: the disk is full",
        ),
    ],
)
def test_how_it_ended(summary: dict[str, object], starts: list[StartNote], says: str) -> None:
    assert ending(summary, starts) == says


def test_starts_are_read_as_they_were_written(tmp_path: Path) -> None:
    files, notes = RunFiles(tmp_path), [start(), start(2, 5, 1, 0.5)]
    for note in notes:
        files.append_start(note)
    with (tmp_path / STARTS).open("a") as file:
        file.write('{"number": 3, "of a later version": 1}\n{"torn')
    assert read_starts(tmp_path) == [*notes, StartNote(3)]
    assert read_starts(tmp_path / "none") == []


def test_a_round_that_was_charged_and_given_up_is_counted(tmp_path: Path) -> None:
    """The first start of this run charges four rounds and checkpoints three; another run had spent before."""
    config = build_config(
        {
            "name": "x",
            "rounds": 9,
            "data": {"source": "sklearn:digits"},
            "model": {"kind": "softmax"},
            "training": {"sampling_rate": 0.25, "steps": 2, "expected_batch": 30},
            "privacy": {"regime": "record", "noise_multiplier": 2.0, "delta": 1e-5, "budget": 50.0},
        }
    )
    plan, names, files = plan_record(config), ["a", "b"], RunFiles(tmp_path / "out")
    files.create()
    (tmp_path / "ledger").mkdir()
    request = Request(files.root, origin=Origin("fedray run x.yaml", ("a=1",), "host", None))

    def start(job: str, after: int, rounds: list[int]) -> StartNote:
        with Account.open_run(tmp_path / "ledger", dict.fromkeys(names, plan), job, lasting=True) as account:
            note = note_start(files, request, job, after, Books(RunBook("records", "record", account, True)))
            for number in rounds:
                account.authorize(number, 0, names)
        return note

    assert start("other/1", 0, [0, 1]).spent_before == {"record": 0.0}
    first = start("mine/1", 0, [0, 1, 2, 3])
    assert first.given_up == 0 and first.spent_before["record"] > 0
    second = start("mine/2", 3, [3])
    assert (second.given_up, second.after) == (1, 3) and second.spent_before["record"] > first.spent_before["record"]
    assert start("mine/3", 4, []).given_up == 0
    noted = read_starts(files.root)
    assert [note.number for note in noted] == [1, 1, 2, 3]
    assert noted[-1].origin == {"command": "fedray run x.yaml", "overrides": ["a=1"], "host": "host"}
    assert noted[-1].output == str(files.root)
