"""Openings of registered records: which positions are drawn, what an answer shows, and that nothing but the registered records passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from silofiles import silo_config

from fedray.cli import cli
from fedray.configfile import dump_config
from fedray.data.commitment import SALT_BYTES
from fedray.data.openings import Challenge, Opened, answer, check_answers
from fedray.data.records import ClientData, Records
from fedray.data.registration import Registration, enter, joined
from fedray.errors import DataError
from fedray.planning.registered import register

SALT, SEED = bytes(range(SALT_BYTES)), "5a" * 32


def client(n: int, values: int = 1000, name: str = "north") -> ClientData:
    draws = np.random.default_rng(n)
    return ClientData(
        name, Records(draws.integers(0, values, (n, 2)).astype(np.float32), draws.integers(0, 2, n)), None, 2, ("age", "dose")
    )


def opened(challenge: Challenge, registration: Registration, *answers: dict[str, Any]) -> Opened:
    (found,) = check_answers(challenge, registration, answers)
    return found


@given(n=st.integers(1, 40), values=st.integers(1, 50), asked=st.one_of(st.none(), st.integers(1, 50)), hashes=st.booleans())
def test_who_holds_what_it_registered_can_open_whatever_is_asked(n: int, values: int, asked: int | None, hashes: bool) -> None:
    data = client(n, values)
    registration = enter(data, SALT, {})
    challenge = Challenge.draw(registration, asked)
    found = opened(challenge, registration, answer(challenge, registration, data, SALT, hashes))
    assert not found.faults and found.opened == min(n, asked or n)
    if found.opened == n:
        rows = {(*x, y) for x, y in zip(data.train.x.tolist(), data.train.y.tolist(), strict=True)}
        assert found.distinct == len(rows) and "there are no others" in str(found)


@given(data=st.data(), n=st.integers(2, 30))
def test_no_change_of_an_answer_passes(data: st.DataObject, n: int) -> None:
    mine = client(n)
    registration = enter(mine, SALT, {})
    challenge = Challenge.draw(registration, data.draw(st.integers(1, n)))
    given_ = answer(challenge, registration, mine, SALT)
    shown = given_["clients"]["north"]
    k = data.draw(st.integers(0, len(shown) - 1))
    path = shown[k]["path"]
    other = answer(challenge, registration, mine, SALT, hashes=True)["clients"]["north"][k]["content"]
    changed: dict[str, Any] = {
        "x": shown[k]["y"],
        "y": "AAAAAAAAAAU=",
        "salt": "00" * 32,
        "position": shown[k]["position"] + n,
        "path": [*path[:-1], "00" * 32] if path else ["00" * 32],
        "content": ("0" if other[0] != "0" else "1") + other[1:],
    }
    key = data.draw(st.sampled_from(sorted(changed)))
    shown[k] = {**shown[k], key: changed[key]}
    found = opened(challenge, registration, json.loads(json.dumps(given_)))
    assert len(found.faults) == 1 and found.opened == len(shown) - 1, key


def test_a_holder_of_other_records_cannot_answer() -> None:
    data = client(10)
    registration = enter(data, SALT, {})
    challenge = Challenge.draw(registration, 3)
    other = replace(data, train=Records(data.train.x, 1 - data.train.y))
    with pytest.raises(DataError, match="holds other data than it registered, so it cannot answer"):
        answer(challenge, registration, other, SALT)
    forged = answer(Challenge(enter(other, SALT, {}).sha256, challenge.seed, 3, ("north",)), enter(other, SALT, {}), other, SALT)
    found = opened(challenge, registration, forged | {"challenge": challenge.sha256})
    assert len(found.faults) == 3 and "not under the registered root" in str(found)


def test_a_registration_that_hides_records_is_found_as_often_as_it_says() -> None:
    """A holder registers ten records of which it has lost three: it can open the others only."""
    data, escaped, runs = client(10), 0, 400
    registration, lost = enter(data, SALT, {}), {2, 5, 7}
    for _ in range(runs):
        challenge = Challenge.draw(registration, 2)
        escaped += not lost & set(challenge.positions("north", 10))
    without_replacement = math.comb(7, 2) / math.comb(10, 2)
    assert abs(escaped / runs - without_replacement) < 5 * math.sqrt(without_replacement * (1 - without_replacement) / runs)
    assert without_replacement < (1 - 0.3) ** 2
    assert Opened("a", 10_000, 59, 59, ()).unseen == pytest.approx(0.0495, abs=1e-4)  # 1 - p = 0.05 ** (1 / 59)
    assert Opened("a", 10, 10, 10, ()).unseen == 0.0


def test_positions_follow_from_the_seed_and_are_drawn_evenly() -> None:
    registration = enter(client(20), SALT, {})
    drawn = Challenge.draw(registration, 5, seed=SEED)
    assert drawn == Challenge.draw(registration, 5, seed=SEED) != Challenge.draw(registration, 5)
    assert drawn.positions("north", 20) == sorted(set(drawn.positions("north", 20))) != drawn.positions("south", 20)
    counts = np.zeros(20)
    for _ in range(400):
        counts[Challenge.draw(registration, 5).positions("north", 20)] += 1
    assert np.abs(counts - 100).max() < 6 * math.sqrt(400 * 0.25 * 0.75)
    for words, bad in (
        ("1 record of each client or more", lambda: Challenge.draw(registration, 0)),
        ("client 'nort' has not registered.*north", lambda: Challenge.draw(registration, 1, ["nort"])),
        ("32 bytes as 64 hexadecimal digits", lambda: Challenge.draw(registration, 1, seed="ab")),
        ("32 bytes as 64 hexadecimal digits", lambda: Challenge.draw(registration, 1, seed="no hex")),
    ):
        make: Callable[[], Challenge] = bad
        with pytest.raises(DataError, match=words):
            make()


def test_a_challenge_is_of_one_registration_and_an_answer_of_one_challenge() -> None:
    north, south = client(10), client(8, name="south")
    alone, both = enter(north, SALT, {}), joined([enter(north, SALT, {}), enter(south, SALT[::-1], {})])
    challenge = Challenge.draw(both, 2)
    with pytest.raises(DataError, match="use the same file"):
        answer(challenge, alone, north, SALT)
    mine = answer(challenge, both, north, SALT)
    found = {one.name: one for one in check_answers(challenge, both, [mine])}
    assert not found["north"].faults and found["south"].faults == ("it has not answered.",) and found["south"].unseen == 1.0
    assert not any(one.faults for one in check_answers(challenge, both, [mine, answer(challenge, both, south, SALT[::-1])]))
    with pytest.raises(DataError, match="to another challenge"):
        check_answers(Challenge.draw(both, 2), both, [mine])


def fedray(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_hospitals_open_records_by_files(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart").mkdir()
    for path in (real_data / "heart").glob("*.csv"):
        (tmp_path / "heart" / path.name).write_bytes(path.read_bytes())
    where = [str(ROOT / "configs" / "heart-private.yaml"), "data.source=csv:heart", "agreed.registration=agreed.json"]
    assert fedray("register", *where, "--out", "agreed.json").exit_code == 0
    assert fedray("opening", "challenge", "agreed.json", "--records", "20", "--out", "asked.json").exit_code == 0
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        done = fedray("opening", "answer", *where, "--challenge", "asked.json", "--client", name, "--out", f"{name}.open.json")
        assert f"shows 20 records of {name} to whoever reads it" in done.output
    answers = [f"{name}.open.json" for name in ("cleveland", "hungarian", "switzerland", "va")]
    done = fedray("opening", "check", "agreed.json", *answers, "--challenge", "asked.json", "--out", "found.json")
    assert (
        done.exit_code == 0
        and "cleveland: 20 of 200 registered records are under the root; if more than 14 % were not there" in done.output
    )
    assert [one["opened"] for one in json.loads(Path("found.json").read_text())["clients"]] == [20] * 4
    done = fedray("opening", "check", "agreed.json", *answers[1:], "--challenge", "asked.json")
    assert done.exit_code == 1 and "the opening failed for cleveland" in done.output
    path = tmp_path / "heart" / "va.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    done = fedray("opening", "answer", *where, "--challenge", "asked.json", "--client", "va", "--out", "again.json")
    assert done.exit_code == 2 and "client va holds other data than it registered, so it cannot answer" in done.output


def test_a_run_is_opened_by_one_command_and_its_ledger_names_the_same_roots(tmp_path: Path) -> None:
    """The run's directory as a run leaves it, with the driver's book."""
    config, run = silo_config(tmp_path), tmp_path / "run"
    registration = register(config)
    (run / "ledger").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    (run / "registration.json").write_text(json.dumps(registration.document()))
    entry = {"subject": "north", "data": registration.clients["north"].root}
    part = run / "ledger" / "north.part.json"
    part.write_text(json.dumps({"entries": [entry]}))
    done = fedray("audit", str(run), "--open")
    assert done.exit_code == 0 and "north: all 16 registered records are under the root, and there are no others." in done.output
    assert len(json.loads((run / "audit" / "opening.json").read_text())["clients"]) == 2
    agreed = {"registration_sha256": registration.sha256, "clients": 2, "changed": {"south": "client south does not hold the data."}}
    for unit, words in (("record", "north: all 16 registered records are under the root"), ("client", "north: as registered")):
        (run / "summary.json").write_text(json.dumps({"name": "t", "agreed": agreed, "privacy": {"unit": unit, "epsilon": None}}))
        assert fedray("report", str(run)).exit_code == 0
        page = (run / "report.md").read_text()
        assert words in page and "left out of rounds: client south does not hold the data." in page
    part.write_text(json.dumps({"entries": [entry | {"data": "ab" * 32}]}))
    done = fedray("audit", str(run), "--open", "--records", "3")
    assert done.exit_code == 1 and "the ledger of run charges records with another root, abababababab" in done.output
    assert fedray("audit", str(run), "--open", "--canaries", "3").exit_code == 2
    assert fedray("audit", str(run), "--records", "3").exit_code == 2
    (run / "registration.json").unlink()
    assert "is no run with registered data" in fedray("audit", str(run), "--open").output
