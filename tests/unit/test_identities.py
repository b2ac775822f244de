"""Identities of clients of secure sums: how they are made and read, what is refused, and that a config brings them to the members."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from securesums import Attempt, random_updates

from fedray.choices import Choice
from fedray.cli import cli
from fedray.errors import ConfigError, FedrayError
from fedray.secure.identities import make_key, read_signer
from fedray.secure.protocol import TooFew, make_protocol
from fedray.secure.secagg import SecAgg

NAMES = ["north", "east", "south", "west", "centre"]


def write_list(path: Path, listed: object) -> Path:
    path.write_text(json.dumps(listed))
    path.chmod(0o644)
    return path


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """The config's arguments, with the files of five clients."""
    listed = {name: make_key(tmp_path / f"{name}.pem") for name in NAMES}
    return {"identities": str(write_list(tmp_path / "all.json", listed)), "key": str(tmp_path / "{client}.pem")}


def test_the_command_makes_a_key_that_only_its_owner_may_read(tmp_path: Path) -> None:
    where = tmp_path / "north.pem"
    before = os.umask(0)
    try:
        result = CliRunner().invoke(cli, ["identity", "north", str(where)])
    finally:
        os.umask(before)
    assert where.stat().st_mode & 0o777 == 0o600
    line = json.loads(result.stdout)
    signer = read_signer("north", str(write_list(tmp_path / "all.json", line)), str(where))
    assert signer.public.hex() == line["north"]
    again = CliRunner().invoke(cli, ["identity", "north", str(where)])
    assert again.exit_code == 1
    assert "exists; name another file" in again.stderr
    with pytest.raises(FedrayError, match="cannot be written"):
        make_key(tmp_path / "nowhere" / "north.pem")


def test_a_config_brings_identities_to_the_members(places: dict[str, str]) -> None:
    protocol = make_protocol(Choice(kind="secagg", fewest=3, **places))
    assert isinstance(protocol, SecAgg)
    makers = [protocol.enrol(name) for name in NAMES]
    attempt = Attempt(protocol, random_updates(5, 20, 1), drops={"train": [4]})
    attempt.members = [make(attempt.order, number) for number, make in enumerate(makers)]
    outcome = attempt.run()
    assert np.array_equal(outcome.total, attempt.updates[:4].sum(axis=0))
    assert all(len(keys) == 160 for keys in outcome.said["keys"].values())
    assert "trusted to follow the protocol" not in protocol.trust
    assert "members learn which clients take part" in protocol.trust
    assert "could read single updates" in SecAgg().trust
    assert protocol.terms() == {"SecAgg": {**SecAgg(fewest=3).terms()["SecAgg"], "identities": True}}  # no path


def test_a_driver_that_puts_its_own_keys_in_a_clients_place_is_refused(places: dict[str, str]) -> None:
    protocol = SecAgg(fewest=3, **places)
    attempt = Attempt(protocol, random_updates(5, 20, 1))
    makers = [protocol.enrol(name) for name in NAMES]
    attempt.members = [make(attempt.order, number) for number, make in enumerate(makers)]
    attempt.members[2] = SecAgg(fewest=3).member(attempt.order, 2)  # the driver's own
    with pytest.raises(TooFew):
        attempt.run()
    assert all("the identity behind the keys of member 2 is not known" in attempt.refusals[n] for n in (0, 1, 3, 4))


def test_what_does_not_fit_is_one_sentence(places: dict[str, str], tmp_path: Path) -> None:
    identities, key = places["identities"], places["key"]
    listed = json.loads(Path(identities).read_text())

    def refused(match: str, client: str = "north", identities: str = identities, key: str = key) -> None:
        with pytest.raises(ConfigError, match=match):
            read_signer(client, identities, key)

    refused("secure.key: .*nobody.pem cannot be read where the process runs that needs it", client="nobody")
    refused("secure.identities: .*/none.json cannot be read", identities=str(tmp_path / "none.json"))
    refused("is no file name", client="../north")
    less = write_list(tmp_path / "less.json", {name: listed[name] for name in NAMES[1:]})
    refused("lists no key for client 'north'", identities=str(less))
    refused("is not the key that .* lists for client 'north'", key=str(tmp_path / "east.pem"))
    refused("lists one key for two clients", identities=str(write_list(tmp_path / "twice.json", {"north": "00" * 32, "east": "00" * 32})))
    for number, malformed in enumerate(([], {}, {"north": "00"}, {"north": 3}, {"north": "x" * 64})):
        refused("is no JSON object of clients' names", identities=str(write_list(tmp_path / f"{number}.json", malformed)))
    open_list = write_list(tmp_path / "open.json", listed)
    open_list.chmod(0o664)
    refused("has the mode 0664; others could put keys of their own into it", identities=str(open_list))
    north = tmp_path / "north.pem"
    for mode in (0o640, 0o604):
        north.chmod(mode)
        refused(f"secure.key: .* has the mode {mode:04o}; nobody but its owner may use it")
    north.chmod(0o600)
    for content in (
        b"no key",
        X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")),
    ):
        north.write_bytes(content)
        refused("holds no Ed25519 private key in PEM without a password")


def test_an_identity_stays_in_its_process(places: dict[str, str]) -> None:
    signer = read_signer("north", **places)
    secret = signer.own.private_bytes_raw()
    assert secret.hex() not in repr(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)
