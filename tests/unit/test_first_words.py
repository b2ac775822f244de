"""What people read first when something is not as they meant it."""

from __future__ import annotations

import json
import pickle
import sys
import traceback
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from paths import ROOT

from fedray import components
from fedray.catalogue import describe
from fedray.cli import cli
from fedray.clients.messages import ClientReport
from fedray.configfile import build_config, dump_config
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal, own_place, raised
from fedray.experiment.identity import another_run, differences, hashed, identity, same_run
from fedray.faults import Fault
from fedray.rounds.notes import client_failures, grouped
from fedray.runfiles import RunFiles

RAW = {
    "name": "r",
    "rounds": 2,
    "data": {"source": "sklearn:wine", "partition": {"kind": "iid", "clients": 3}},
    "model": {"kind": "softmax"},
    "training": {"batch_size": 8, "epochs": 1, "lr": 0.1},
}


def test_a_resume_with_another_config_names_what_differs(tmp_path: Path) -> None:
    old = build_config(RAW)
    files = RunFiles(tmp_path)
    files.config.write_text(dump_config(old))
    new = build_config(RAW | {"training": RAW["training"] | {"lr": 0.2}, "model": {"kind": "mlp", "hidden": [8]}, "rounds": 9})
    assert identity(old, "") != identity(new, "")
    said = str(another_run(files, new, "runs/r"))
    assert "training.lr was 0.1 and is 0.2" in said
    assert 'model.kind was "softmax" and is "mlp"' in said
    assert "model.hidden was null and is [8]" in said
    assert "rounds" not in said
    assert "every key is as it was, so it is the data" in str(another_run(files, old, "runs/r"))
    assert differences(old, build_config(RAW | {"rounds": 9})) == "rounds was 2 and is 9"
    files.config.unlink()
    assert "so it is the data (or the run's config.yaml was changed)" in str(another_run(files, new, "runs/r"))


def test_a_version_with_further_keys_goes_on_with_an_older_run(tmp_path: Path) -> None:
    """Its checkpoint vouches for its config.yaml, which lacks the keys; they have their defaults."""
    groups = [{"name": "g", "clients": 1, "training": {"lr": 0.2}}]
    config, files = build_config(RAW | {"clients": {"groups": groups}}), RunFiles(tmp_path)
    older = json.loads(config.model_dump_json())
    for section, key in (("training", "unfreeze"), ("cohort", "availability")):
        del older[section][key]
    del older["clients"]["groups"][0]["every"]
    files.config.write_text(yaml.safe_dump(older))
    stored = hashed(older, "data")
    assert stored != identity(config, "data")
    assert same_run(files, stored, config, "data")
    assert not same_run(files, stored, config, "other data")
    assert not same_run(files, stored, build_config(RAW), "data")
    files.config.write_text(yaml.safe_dump(older | {"seed": 9}))
    assert not same_run(files, stored, build_config(RAW | {"clients": {"groups": groups}, "seed": 9}), "data")
    files.config.unlink()
    assert not same_run(files, stored, config, "data") and same_run(files, identity(config, "data"), config, "data")


def test_thirty_notes_that_say_the_same_are_one_line() -> None:
    names = [f"client-{k:04d}" for k in range(30)]
    faults = [Fault("client", f"round 3: client {n} on node{k} failed: ValueError: row {k} is odd", 3, n) for k, n in enumerate(names)]
    faults.insert(5, Fault("client", "round 3: client other on node1 late: too slow.", 3, "other"))
    first, second = grouped(faults)
    assert (first.kind, first.round, first.client) == ("client", 3, "client-0000")
    assert first.text == (
        "round 3: client client-0000 on node0 failed: ValueError: row 0 is odd. The same holds for 29 more clients: client-0001, "
        "client-0002, client-0003, ..."
    )
    assert second == faults[5]
    assert grouped([]) == []


def test_failed_clients_are_told_with_the_place_in_their_own_code_and_one_traceback() -> None:
    trace = 'Traceback:\n  File "/srv/parts.py", line 7, in loss\n    raise ValueError\n  File "/x/site-packages/torch/y.py", line 9, in forward\n'
    reports = [
        ClientReport(k, f"c{k}", "failed", error=f"ValueError: row {k} " + "x" * 100_000, traceback=trace, node="n") for k in range(3)
    ]
    told, traces = client_failures(4, [*reports, ClientReport(9, "c9", "done")])
    assert [(f.kind, f.round, f.client, f.node) for f in told] == [("client", 4, f"c{k}", "n") for k in range(3)]
    assert told[0].text.startswith("round 4: client c0 on n failed: ValueError: row 0 xxx")
    assert told[0].text.endswith("(parts.py, line 7, in loss)")
    assert len(told[0].text) < 1000
    assert traces == [f"client c0, round 4:\n{trace}"]
    placed = reports[0]._replace(error="ValueError: odd (parts.py, line 7, in loss)")
    assert client_failures(4, [placed])[0][0].text.count("parts.py") == 1


def test_privacy_taken_off_a_private_config_says_how() -> None:
    from fedray.configfile import load_config
    from fedray.planning.combinations import check_only

    with pytest.raises(ConfigError, match=r'"privacy=\{regime: none\}"'):
        check_only(load_config(ROOT / "configs" / "digits.yaml", ["privacy.regime=none"]))
    check_only(load_config(ROOT / "configs" / "digits.yaml", ["privacy={regime: none}"]))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "odd_parts.py").write_text("def model(input_shape, outputs):\n    raise ValueError('no such width')\n")
    (tmp_path / "odd_module.py").write_text("import math\nmath.no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("odd_parts", "odd_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "python:odd_parts:"


def test_an_own_part_that_raises_is_named_with_its_place(own: str) -> None:
    part = components.find(components.MODELS, own + "model")
    try:
        part((3,), 2)
    except ValueError as error:
        assert own_place(error) == "odd_parts.py, line 2, in model"
        assert raised(error) == "ValueError: no such width (odd_parts.py, line 2, in model)"
    with pytest.raises(ConfigError, match=r"importing 'odd_module' failed with AttributeError: .*no_such_thing.*odd_module\.py, line 2"):
        components.find(components.MODELS, "python:odd_module:model")
    with pytest.raises(ConfigError, match="module 'odd_parts' has no 'modle'. Did you mean 'model'"):
        components.find(components.MODELS, own + "modle")


def test_its_traceback_is_shown_with_debug_alone(own: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_config(build_config(RAW | {"model": {"kind": own + "model"}})))
    plain = CliRunner().invoke(cli, ["plan", "c.yaml"])
    assert plain.exit_code == 2
    assert "making 'python:odd_parts:model' failed with ValueError: no such width (odd_parts.py, line 2, in model)" in plain.output
    debug = CliRunner().invoke(cli, ["--debug", "plan", "c.yaml"])
    shown = "".join(traceback.format_exception(debug.exception))
    assert "raise ValueError('no such width')" in shown


def test_what_an_error_came_of_goes_along_to_other_processes() -> None:
    def fail() -> None:
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise PrivacyRefusal("sentence.", "privacy.x") from error

    with pytest.raises(PrivacyRefusal) as found:
        fail()
    error = found.value
    for _ in range(2):  # through two processes
        error = pickle.loads(pickle.dumps(error))
    assert (str(error), error.code, type(error)) == ("[privacy.x] sentence.", "privacy.x", PrivacyRefusal)
    assert 'raise KeyError("inside")' in "".join(traceback.format_exception(error))
    assert pickle.loads(pickle.dumps(FedrayError("plain"))).__cause__ is None


@pytest.mark.parametrize("kind", components.ROOMS)
def test_every_argument_of_every_part_is_listed_with_type_default_and_meaning(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    room = components.ROOMS[kind]
    for name in room.parts():
        arguments = describe(room, name).arguments
        assert [a.name for a in arguments if not (a.meaning and a.type and a.default)] == []
        shown = CliRunner().invoke(cli, ["list", kind, name])
        assert shown.exit_code == 0, shown.output
        assert all(f"  {a.name}: {a.type.split()[0]}" in shown.output for a in arguments)
        assert max(map(len, shown.output.splitlines())) <= 80


def test_one_part_in_full() -> None:
    shown = CliRunner().invoke(cli, ["list", "models", "mlp"]).output
    assert "  hidden: list of integer or null; default null\n      units of each hidden layer, in order; null = one layer of 64." in shown
    assert "input_shape:" not in shown
    assert "  alpha: number; needed\n" in CliRunner().invoke(cli, ["list", "partitioners", "dirichlet"]).output
    assert "It takes no keys." in CliRunner().invoke(cli, ["list", "losses", "mse"]).output
    wrong = CliRunner().invoke(cli, ["list", "models", "mpl"])
    assert wrong.exit_code == 2
    assert "Did you mean 'mlp'?" in wrong.output
