"""The agreed data: what is registered, what counts as changed, how it is said, and that a client without its registered records trains nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from silofiles import silo_config

from fedray.cli import cli
from fedray.clients.agreement import Agreement, agreed_or_nothing
from fedray.clients.host import ClientHost
from fedray.clients.messages import ClientTask, RoundTask
from fedray.clients.terms import Site, make_terms
from fedray.configfile import build_config, load_config
from fedray.data.commitment import load_salt
from fedray.data.dataset import load_client
from fedray.data.records import ClientData, Records
from fedray.data.registration import Registration, enter, joined, read_registration
from fedray.errors import ConfigError, DataError
from fedray.experiment.description import agreed_tags, tracking_tags
from fedray.faults import Fault
from fedray.planning.preparation import prepare
from fedray.planning.registered import register
from fedray.rounds.agreed import AgreedData


def client(n: int = 12, seed: int = 0, columns: tuple[str, ...] = ("age", "sex", "dose")) -> ClientData:
    draws = np.random.default_rng(seed)
    records = Records(draws.normal(size=(n, len(columns))).astype(np.float32), draws.integers(0, 2, n))
    return ClientData("north", records, None, 2, columns)


def with_records(data: ClientData, x: Any, y: Any, **about: Any) -> ClientData:
    return replace(data, train=Records(x, y), **about)


@pytest.fixture
def salt(tmp_path: Path) -> bytes:
    return load_salt(tmp_path, "north")


@given(data=st.data(), n=st.integers(1, 20), kinds=st.integers(1, 3))
def test_any_order_is_the_same_data_and_any_other_multiset_of_records_is_not(
    data: st.DataObject, n: int, kinds: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Few values, so that records have twins: how many twins there are counts."""
    folder = tmp_path_factory.mktemp("salts")
    values = st.lists(st.tuples(st.integers(0, kinds), st.integers(0, 1)), min_size=n, max_size=n)

    def of(rows: list[tuple[int, int]]) -> ClientData:
        x, y = np.array([[r[0]] for r in rows], dtype=np.float32), np.array([r[1] for r in rows])
        return ClientData("north", Records(x, y), None, 2, ("age",))

    then, now = data.draw(values), data.draw(values)
    registration = enter(of(then), load_salt(folder, "north"), {})
    assert registration.compare(of(data.draw(st.permutations(then))), folder) == ""
    assert (registration.compare(of(now), folder) == "") == (sorted(then) == sorted(now))
    assert f"(count {n} to {n + 1})" in registration.compare(of([*then, then[0]]), folder)


def test_what_changed_is_named(tmp_path: Path, salt: bytes) -> None:
    data = client(1203)
    registration, (x, y) = enter(data, salt, {}), (data.train.x, data.train.y)

    def said(now: ClientData, quiet: bool = False) -> str:
        return registration.compare(now, tmp_path, quiet)

    other = x.copy()
    other[3, 1] += 1
    begins = "client north does not hold the data that it registered"
    assert said(with_records(data, x[:1198], y[:1198])) == f"{begins} (count 1,203 to 1,198)."
    assert said(with_records(data, other, y)) == f"{begins} (same count and schema, but other records)."
    assert said(with_records(data, x, 1 - y)) == f"{begins} (same count and schema, but other records)."
    assert "columns 'age' to 'dose' float32 to int64" in said(with_records(data, x.astype(np.int64), y))
    assert "(schema: column 'dose' is gone, column 'weight' is new)" in said(replace(data, columns=("age", "sex", "weight")))
    assert "column 1 was 'age' and is 'sex'" in said(replace(data, columns=("sex", "age", "dose")))
    assert "shape of a record (3,) to (2,)" in said(with_records(replace(data, columns=data.columns), x[:, :2], y))
    assert "(schema: classes 2 to 3)" in said(replace(data, classes=3))
    assert "targets int64 () to float32 ()" in said(with_records(data, x, y.astype(np.float32)))
    assert "divided by 1, now by 255" in said(replace(data, scale=255.0))
    assert "count 1,203 to 1,198; schema: classes 2 to 3" in said(with_records(data, x[:1198], y[:1198], classes=3))
    assert said(with_records(data, x[:1198], y[:1198]), quiet=True) == f"{begins}."  # where the number of records is private
    assert said(data) == ""
    (tmp_path / "north.salt").unlink()
    assert f"the salt with which it registered is not in {tmp_path}" in said(data)
    load_salt(tmp_path, "north")  # another one
    assert "the salt with which it registered is not in" in said(data)


def test_a_registration_is_read_as_it_was_written_and_every_field_of_it_counts(tmp_path: Path, salt: bytes) -> None:
    data, path = client(), tmp_path / "agreed.json"
    registration = enter(data, salt, {"seed": 0})
    path.write_text(json.dumps(registration.document()))
    read = read_registration(path)
    assert read == registration and read.sha256 == registration.sha256
    assert salt.hex() not in path.read_text()

    def fails(change: Any) -> bool:
        """Whether a change of the file is noticed: in reading, or because nobody holds such data."""
        document = json.loads(path.read_text())
        change(document)
        tampered = tmp_path / "tampered.json"
        tampered.write_text(json.dumps(document))
        try:
            found = read_registration(tampered)
        except DataError:
            return True
        assert found.sha256 != registration.sha256
        return found.compare(data, tmp_path) != ""

    entry = registration.document()["clients"]["north"]
    for key, value in (("root", "0" * 64), ("records", 13), ("salt", "0" * 64)):
        assert fails(lambda d, key=key, value=value: d["clients"]["north"].update({key: value})), key
        assert fails(lambda d, key=key: d["clients"]["north"].pop(key)), key
    for key, value in registration.schema.document().items():
        assert fails(lambda d, key=key, value=value: d["schema"].update({key: [value]})), key
        assert fails(lambda d, key=key: d["schema"].pop(key)), key
    for key in ("format", "schema_sha256"):
        assert fails(lambda d, key=key: d.update({key: "0" * 64})), key
    assert fails(lambda d: d.update(clients={}))
    assert entry["records"] == 12
    with pytest.raises(DataError, match="cannot be read"):
        read_registration(tmp_path / "none.json")


def test_parts_are_joined_only_if_they_go_together(salt: bytes) -> None:
    north, south = client(), replace(client(9, 1), name="south")
    parts = [enter(north, salt, {"seed": 0}), enter(south, salt, {"seed": 0})]
    both = joined(parts)
    assert list(both.clients) == ["north", "south"] and joined([both, parts[0]]) == both
    with pytest.raises(DataError, match="south registers records of another schema.*column 'dose' is gone"):
        joined([parts[0], enter(replace(south, columns=("age", "sex", "weight")), salt, {"seed": 0})])
    with pytest.raises(DataError, match="south was registered with another config.*seed was 0 and is 1"):
        joined([parts[0], enter(south, salt, {"seed": 1})])
    with pytest.raises(DataError, match="north stands in two parts with other data"):
        joined([parts[0], enter(client(5), salt, {"seed": 0})])


def test_a_changed_client_has_nothing_left_to_train_on(tmp_path: Path, salt: bytes) -> None:
    data = client()
    agreement = Agreement(enter(data, salt, {}), str(tmp_path), quiet=False)
    kept, changed = agreed_or_nothing(data, agreement)
    assert (kept, changed) == (data, "") and not data.train.x.flags.writeable
    less = with_records(data, data.train.x[:-1].copy(), data.train.y[:-1].copy(), test=data.train)
    empty, changed = agreed_or_nothing(less, agreement)
    assert "count 12 to 11" in changed
    assert len(empty.train) == 12 and not empty.train.x.any() and not empty.train.y.any() and empty.test is None


def test_a_silo_whose_file_changed_refuses_its_turn_and_is_not_charged(tmp_path: Path) -> None:
    config = silo_config(tmp_path)
    (tmp_path / "agreed.json").write_text(json.dumps(register(config).document()))

    def begun(name: str) -> tuple[ClientHost, str]:
        prepared = prepare(config)
        group = prepared.groups[0]
        site = Site(
            data=config.data,
            agreed=prepared.agreed[group.name].of(name),
            client=ClientTask(0, name),
            book=prepared.plans[0],
            ledger=group.ledger,
            device="cpu",
        )
        host = ClientHost(make_terms(config, group, prepared.plans[0], None, job="run/1"), site)
        return host, host.ready().changed

    host, changed = begun("north")
    assert changed == "" and host.authorize(0, 0).granted == ["north"]
    host._account.close()  # type: ignore[union-attr]
    path = tmp_path / "silos" / "north.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    host, changed = begun("north")
    assert "client north does not hold the data that it registered (count 16 to 14)." in changed
    charges = (tmp_path / "books" / "north.jsonl").read_text().count('"reserve"')
    assert host.authorize(1, 0).granted == [] and (tmp_path / "books" / "north.jsonl").read_text().count('"reserve"') == charges == 1
    prepared = prepare(config.model_copy(update={"clients": config.clients.model_copy(update={"placement": "hosted"})}))
    assert prepared.model is not None
    host.configure(prepared.model.facts, prepared.model.exchange.sha256)
    (report,) = host.train(RoundTask(1, 1e4), prepared.model.weights.value, [ClientTask(0, "north")])
    assert (report.status, report.error) == ("refused", changed)
    assert host.evaluate_noised(prepared.model.weights.value, [ClientTask(0, "north")], 1) == []
    host._account.close()  # type: ignore[union-attr]


def test_hosted_clients_whose_labels_were_flipped_are_found(tmp_path: Path) -> None:
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}}
    agreed = {"registration": str(tmp_path / "agreed.json"), "salts": str(tmp_path)}
    plain = {
        "name": "t",
        "rounds": 1,
        "data": data,
        "agreed": agreed,
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1},
    }
    (tmp_path / "agreed.json").write_text(json.dumps(register(build_config(plain)).document()))
    honest = prepare(build_config(plain))
    assert honest.federation is not None and honest.agreed["default"].changes(honest.federation) == {}
    attacked = prepare(build_config(plain | {"attack": {"kind": "label_flip", "fraction": 0.3}}))
    assert attacked.federation is not None
    flipped = attacked.agreed["default"].changes(attacked.federation)
    assert len(flipped) == 2 and all("same count and schema, but other records" in text for text in flipped.values())
    assert tracking_tags(honest)["fedray.agreed"] == read_registration(tmp_path / "agreed.json").sha256
    assert agreed_tags(honest, {"changed": flipped})["fedray.agreed_changed"] == ", ".join(flipped)
    other = prepare(build_config(plain | {"seed": 1}))
    assert any("registered with other settings, which may change the records: seed was 0 and is 1" in text for text in other.warnings)


def test_who_changed_is_told_once_and_drawn_or_not() -> None:
    changed = {"b": "client b does not hold the data that it registered (count 2 to 1)."}
    told: list[Fault] = []
    agreed, everyone = AgreedData("ab" * 32, 3, lambda: changed), [ClientTask(k, name) for k, name in enumerate("abc")]
    cohort, refused = agreed.admitted(0, [everyone[0], everyone[2]], told.append)
    assert [c.name for c in cohort] == ["a", "c"] and not refused
    assert [(f.client, f.round) for f in told] == [("b", 1)]
    cohort, refused = agreed.admitted(1, everyone, told.append)
    assert [c.name for c in cohort] == ["a", "c"] and list(refused) == ["b"] and len(told) == 1
    changed.clear()  # its actor has loaded the registered file again
    assert agreed.admitted(2, everyone, told.append) == (everyone, {})
    assert list(agreed.summary()["changed"]) == ["b"]


def test_a_directory_for_salts_is_named_once(tmp_path: Path) -> None:
    agreed = {"registration": "agreed.json", "salts": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"agreed.salts: the salts lie beside the ledger .*books"):
        register(silo_config(tmp_path, agreed=agreed))
    with pytest.raises(ConfigError, match=r"agreed.salts: the secret salts .* need a directory that outlives runs"):
        register(silo_config(tmp_path, privacy={"regime": "none"}, training={"batch_size": 5, "epochs": 1}))
    with pytest.raises(ConfigError, match="there is no client 'nort'.*north"):
        register(silo_config(tmp_path), ["nort"])


def test_registration_and_salts_may_lie_in_an_object_store() -> None:
    import boto3
    from moto import mock_aws

    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 3}}
    agreed = {"registration": "s3://agreed/it.json?region=us-east-1", "salts": "s3://agreed/salts?region=us-east-1"}
    plain = {
        "name": "t",
        "rounds": 1,
        "data": data,
        "agreed": agreed,
        "model": {"kind": "softmax"},
        "training": {"batch_size": 8, "epochs": 1},
    }
    with mock_aws():
        store = boto3.client("s3", region_name="us-east-1")
        store.create_bucket(Bucket="agreed")
        with pytest.raises(DataError, match="s3://agreed/it.json.* is not a registration"):
            prepare(build_config(plain))
        store.put_object(Bucket="agreed", Key="it.json", Body=json.dumps(register(build_config(plain)).document()))
        prepared = prepare(build_config(plain))
        assert prepared.federation is not None and prepared.agreed["default"].changes(prepared.federation) == {}


def test_a_client_that_did_not_register_is_named(tmp_path: Path) -> None:
    config = silo_config(tmp_path)
    (tmp_path / "agreed.json").write_text(json.dumps(register(config, ["north"]).document()))
    with pytest.raises(ConfigError, match="agreed.registration: .* lacks client 'south'; let it register"):
        prepare(config)


def test_four_hospitals_register_apart_and_a_changed_line_is_noticed(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart").mkdir()
    for path in (real_data / "heart").glob("*.csv"):
        (tmp_path / "heart" / path.name).write_bytes(path.read_bytes())
    names = sorted(path.stem for path in (real_data / "heart").glob("*.csv"))
    where = [str(ROOT / "configs" / "heart-private.yaml"), "data.source=csv:heart"]

    def fedray(*arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    for name in names:
        fedray("register", *where, "--client", name, "--out", f"{name}.json")
    parts = [text for name in names for text in ("--join", f"{name}.json")]
    assert "cleveland: 200 records, root " in fedray("register", *parts, "--out", "agreed.json")
    fedray("register", *where, "--out", "whole.json")
    registration = read_registration(tmp_path / "agreed.json")
    assert registration == read_registration(tmp_path / "whole.json")
    assert CliRunner().invoke(cli, ["register", *where, "--out", "agreed.json"]).exit_code == 2  # never replaced

    config = load_config(where[0], where[1:])

    def compared(registration: Registration) -> dict[str, str]:
        clients = (load_client(config.data, config.seed, name) for name in names)
        return {data.name: said for data in clients if (said := registration.compare(data, tmp_path / "heart.ledger"))}

    assert compared(registration) == {}
    path = tmp_path / "heart" / "va.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")  # in another order, another holdout is drawn
    assert "same count and schema" in compared(registration)["va"]
    path.write_text("\n".join(lines[:-9]) + "\n")
    assert list(compared(registration)) == ["va"] and "(count 86 to " in compared(registration)["va"]
