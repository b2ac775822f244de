"""What a client's data went into, and whose data went into a model: both directions, over runs that began with each other's models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fedray.cli import cli
from fedray.errors import ConfigError, FedrayError
from fedray.participation import FILE, append_participants, read_participants, rewind_participants
from fedray.reporting.lineage import Lineage, of_client, of_model, rounds_text
from fedray.reporting.lineage_text import client_text, model_text
from fedray.reporting.registered_models import ModelVersion
from fedray.traces import Trace, read_traces

CLIENTS = ("a", "b", "c")
BOUND = {"epsilon": 1.0, "delta": 1e-5, "claim": "valid", "unit": "record"}


def trace(number: int, clients: set[str], parent: int | None, secret: bool, private: bool = False) -> Trace:
    """Run ``number`` with these clients in its only round, which began with the model of run ``parent``."""
    return Trace(
        where=Path(f"/runs/{number}"),
        kind="run",
        name=f"run-{number}",
        status="completed",
        model=f"{number:064x}",
        clients=len(clients),
        names=frozenset() if secret else frozenset(clients),
        secret=secret,
        participants=None if secret else [{"round": 1, "clients": sorted(clients)}],
        began=None if parent is None else {"where": "", "sha256": f"{parent:064x}"},
        private=BOUND if private else {},
    )


@st.composite
def families(draw: st.DrawFn) -> list[Trace]:
    found: list[Trace] = []
    for number in range(draw(st.integers(1, 6))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        clients = draw(st.sets(st.sampled_from(CLIENTS), min_size=1))
        found.append(trace(number, clients, parent, draw(st.booleans()), draw(st.booleans())))
    return draw(st.permutations(found))


@settings(phases=(Phase.explicit, Phase.generate))
@given(families(), st.sampled_from(CLIENTS))
def test_both_directions_agree_and_follow_what_a_run_began_with(family: list[Trace], client: str) -> None:
    by_model, lineage = {t.model: t for t in family}, Lineage(family, [], [])

    def ancestors(t: Trace | None) -> list[Trace]:
        return [] if t is None else [t, *ancestors(None if t.began is None else by_model[t.began["sha256"]])]

    found = of_client(client, lineage)
    rows = {row["where"]: row for row in found["runs"]}
    for t in family:
        line = ancestors(t)
        part = {str(a.where) for a in line if a.secret or client in a.names}
        assert (str(t.where) in rows) == bool(part)
        assert [run["where"] for run in of_model(str(t.where), lineage)["runs"]] == [str(a.where) for a in line]
        for a, run in zip(line, of_model(str(t.model), lineage)["runs"], strict=True):
            assert run["secret"] == a.secret and (run["clients"] is None if a.secret else set(run["clients"]) == a.names)
        if part:
            row = rows[str(t.where)]
            assert set(row["through"]) == part - {str(t.where)}
            assert row["part"] == ("secret" if t.secret else "yes" if client in t.names else "through")
            assert row["bounded"] == all(a.private for a in line if str(a.where) in part)
    assert client_text(found) and not any("began with" in said for said in found["unread"])


def test_a_secret_cohort_is_not_told_in_either_direction() -> None:
    lineage = Lineage([replace(trace(0, set(CLIENTS), None, True, True), participants=[{"round": 1, "clients": ["b"]}])], [], [])
    said = client_text(of_client("b", lineage)), model_text(of_model("/runs/0", lineage))
    assert all("secret" in text and "round 1" not in text and "1 rounds" not in text for text in said) and "b" not in said[1].split()


def test_versions_are_found_by_the_hash_and_what_is_not_known_is_said() -> None:
    run = trace(1, {"a"}, None, False)
    child = trace(2, {"b"}, 7, False)  # began with a model that no run here made
    versions = [
        ModelVersion("sqlite:///x", "m", "3", "", str(run.model), ("champion",)),
        ModelVersion("sqlite:///x", "m", "4", "other", "", ()),
    ]
    lineage = Lineage([run, child], versions, [])
    (row,) = of_client("a", lineage)["runs"]
    assert row["versions"] == [{"store": "sqlite:///x", "name": "m", "version": "3", "aliases": ["champion"]}]
    assert "models:/m/3 @champion" in client_text(of_client("a", lineage))
    assert any("/runs/2: began with" in said for said in of_client("a", lineage)["unread"])
    for what in ("models:/m/3", "models:/m@champion", str(run.model), "/runs/1"):
        assert [r["where"] for r in of_model(what, lineage)["runs"]] == ["/runs/1"]
    with pytest.raises(ConfigError, match="none of the 2 runs"):
        of_model("models:/m/4", lineage)


def test_participants_are_kept_by_round_and_cut_back_for_a_resume(tmp_path: Path) -> None:
    assert read_participants(tmp_path) is None
    append_participants(tmp_path, 1, ["a", "b"], 2)
    append_participants(tmp_path, 2, ["b"], 2)
    append_participants(tmp_path, 3, [], 2)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"round": 4, "cli')
    rewind_participants(tmp_path, 2)
    assert read_participants(tmp_path) == [{"round": 1, "everyone": True}, {"round": 2, "clients": ["b"]}]
    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(FedrayError, match="damaged"):
        read_participants(tmp_path)


@given(st.sets(st.integers(1, 40)))
def test_rounds_are_written_as_ranges(rounds: set[int]) -> None:
    text = rounds_text(sorted(rounds))
    back = {n for part in filter(None, text.split(", ")) for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)}
    assert back == rounds


def test_a_damaged_run_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("name: x\n")
        (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / name / "partition.json").write_text('{"clients": 1, "rows": [{"client": "a"}]}' if name == "good" else "{")
        append_participants(tmp_path / name, 1, ["a"], 1)
    traces, unread = read_traces([tmp_path])
    assert [t.where.name for t in traces] == ["good"] and len(unread) == 1 and "bad" in unread[0]
    run = CliRunner().invoke
    told = run(cli, ["lineage", str(tmp_path), "--client", "a"])
    assert (
        told.exit_code == 0
        and "took part in 1 rounds: 1" in told.output
        and "nothing bounds" in told.output
        and "Not known:" in told.output
    )
    assert "went into none" in run(cli, ["lineage", str(tmp_path), "--client", "z"]).output
    assert "a: 1 rounds (1)" in run(cli, ["lineage", str(tmp_path), "--model", str(tmp_path / "good")]).output
    assert run(cli, ["lineage", str(tmp_path)]).exit_code == 2
