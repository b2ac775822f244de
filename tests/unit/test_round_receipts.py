"""The driver uses no update whose receipt is not of its bytes, and covers receipts whose updates did not arrive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from signedruns import both, make_keys

from fedray.aggregation.each import Rows, RowsAt
from fedray.aggregation.exact import ExactSum
from fedray.choices import Signing
from fedray.clients.messages import ClientReport, PartialSum, RoundTask
from fedray.clients.receiptsigner import ReceiptSigner, SigningPlace
from fedray.configfile import build_config
from fedray.errors import ClaimVoid, ConfigError, FedrayError
from fedray.exchange import Exchange
from fedray.parameters import Entry, Layout
from fedray.planning.combinations import check_privacy
from fedray.rounds.roundreceipts import RoundReceipts, receipts_of
from fedray.runfiles import RunFiles
from fedray.secure.signedlines import read_signed
from fedray.tensorfile import DIGEST, read_tensors, write_tensors

NAMES = ("north", "south")


class Actors:
    """Stands for the pool: asks clients that live in this process."""

    def __init__(self, signers: Mapping[int, ReceiptSigner]) -> None:
        self.signers, self.asked = dict(signers), list[int]()

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]], timeout: float) -> dict[int, Any]:
        assert method == "signed_after"
        self.asked += list(arguments)
        return {index: self.signers[index].after(*given) for index, given in arguments.items() if index in self.signers}


class Federation:
    """Two clients that sign, and the driver's receipts, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files, self.signing = RunFiles(folder / "run"), Signing(**make_keys(folder))
        self.files.root.mkdir(exist_ok=True)
        (self.files.root / "run.json").write_text(json.dumps({"id": "run"}))
        self.start(1, 0)

    def start(self, number: int, done: int, resumed: bool = False) -> None:
        self.receipts = RoundReceipts(self.signing, self.files, NAMES, resumed)
        self.job = f"run/{number}"
        self.pool = Actors({})
        for index in range(len(NAMES)):
            self.restart(index)
        self.receipts.begin(self.pool, self.job, done, model(done))  # type: ignore[arg-type]

    def restart(self, index: int) -> None:
        if index in self.pool.signers:
            self.pool.signers[index].close()
        self.pool.signers[index] = ReceiptSigner(self.receipts.place(NAMES[index]), NAMES[index], self.job)

    def close(self) -> None:
        for signer in self.pool.signers.values():
            signer.close()

    def update(self, index: int, round_: int, attempt: int = 0) -> tuple[PartialSum, ClientReport]:
        """A client's turn: its part, and its report."""
        charge = {"record": {"reservation": f"{index}-{round_}-{attempt}", "plan": "p"}}
        report = ClientReport(index, NAMES[index], "done", attempt, receipts=charge)
        total = ExactSum.zero(6, 4.0)
        total.add(np.arange(6, dtype=np.float32) + index + round_, 2.0)
        signer = self.pool.signers[index]
        signer.trained(RoundTask(round_, 4.0), [report])
        return PartialSum(round_, total, [index], signed=signer.leaving(total, [index], "terms", exchange())), report


def exchange() -> Exchange:
    from fedray.algorithms.algorithm import make_algorithm
    from fedray.choices import Choice

    return make_algorithm(Choice(kind="fedavg")).exchange(Layout((Entry("w", (6,), 0, "shared"),)))


def model(done: int) -> str:
    return f"{done:064x}"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_an_update_counts_only_with_the_receipt_of_its_bytes(federation: Federation) -> None:
    part, report = federation.update(0, 0)
    other, others = federation.update(1, 0)
    for bad, said, why in (
        (PartialSum(0, part.total, [0]), report, "without a signed receipt"),
        (PartialSum(0, other.total, [0], signed=part.signed), report, "says update"),
        (part, report._replace(attempt=1), "says attempt 0"),
        (part, report._replace(receipts={}), "says ran"),
        (PartialSum(0, part.total, [0], signed=other.signed), report, "is none of this run by its key"),
        (PartialSum(0, part.total, [0], signed=part.signed[:-9] + b"00000000}"), report, "is none of this run by its key"),
        (PartialSum(0, part.total, [0], signed=b"{}"), report, "is none of this run by its key"),
    ):
        with pytest.raises(ClaimVoid, match=f"client north: .*{why}.*nothing of"):
            federation.receipts.arrived(bad, said, 1)
    federation.receipts.arrived(part, report, 1)
    federation.receipts.arrived(other, others, 1)


def test_a_single_update_is_compared_in_all_its_segments(federation: Federation) -> None:
    rows = Rows(6)
    rows.add(np.arange(6, dtype=np.float32), 3.0)
    report = ClientReport(0, "north", "done")
    signer = federation.pool.signers[0]
    signer.trained(RoundTask(0, 4.0), [report])
    report = report._replace(signed=signer.leaving(rows, [0], "terms", exchange()))
    federation.receipts.arrived(RowsAt.here([0], rows, 3), report, 3)
    rows.blocks[0][0, 5] = 0.0
    with pytest.raises(ClaimVoid, match="says update"):
        federation.receipts.arrived(RowsAt.here([0], rows, 3), report, 3)
    federation.receipts.arrived(RowsAt([0], lambda k: "gone"), report, 3)  # nothing of it is used, and nothing is compared


def test_receipts_of_updates_that_did_not_arrive_are_fetched_and_not_counted(federation: Federation, tmp_path: Path) -> None:
    lost, _ = federation.update(0, 0)
    federation.restart(0)  # its actor died after it had signed
    for index, attempt in ((0, 1), (1, 0)):
        federation.receipts.arrived(*federation.update(index, 0, attempt), 1)
    federation.receipts.round_done(0, [0, 1], model(1), {})
    assert federation.pool.asked == [0]
    lines = [read_signed(line) for line in federation.files.receipts.read_bytes().splitlines()]
    assert [line.body["kind"] for line in lines] == ["start", "receipt", "receipt", "receipt", "round"]
    assert lines[1].line == lost.signed and lines[-1].body["counted"] == [1, 2]
    late = finish(federation, 1)
    assert read_signed(federation.files.receipts.read_bytes().splitlines()[-2]).line == late.signed
    assert both(federation.files.root, tmp_path / "public") == ([], [])


def finish(federation: Federation, done: int) -> PartialSum:
    """The last round, and the run's end, by which another update has left; returns that."""
    write_tensors(federation.files.model, {"w": np.full(3, done, dtype=np.float32)}, {"format": "pt"})
    digest = read_tensors(federation.files.model)[1][DIGEST]
    for index in (0, 1):
        federation.receipts.arrived(*federation.update(index, done), 1)
    federation.receipts.round_done(done, [0, 1], digest, {})
    federation.files.summary.write_text(json.dumps({"model_sha256": digest}))
    late, _ = federation.update(1, done + 1)
    federation.receipts.end(done + 1, "completed", digest, {})
    return late


def test_a_crash_at_any_byte_of_what_is_written_loses_no_receipt(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    for round_ in range(2):
        for index in (0, 1):
            federation.receipts.arrived(*federation.update(index, round_), 1)
        federation.receipts.round_done(round_, [0, 1], model(round_ + 1), {})
    whole = federation.files.receipts.read_bytes()
    first = len(whole) - sum(len(line) for line in whole.splitlines(keepends=True)[-3:])  # of the second round
    signed = [line for line in whole.splitlines() if read_signed(line).body["kind"] == "receipt"]
    for cut in (first, first + 1, first + 400, len(whole) - 1):
        federation.close()
        federation.files.receipts.write_bytes(whole[:cut])
        federation.start(2, 1, resumed=True)
        for index in (0, 1):
            federation.receipts.arrived(*federation.update(index, 1, attempt=cut), 1)
        federation.receipts.round_done(1, [0, 1], model(2), {})
        found = federation.files.receipts.read_bytes().splitlines()
        assert set(signed) <= set(found)
        assert len(set(found)) == len(found)


def test_receipts_that_are_missing_damaged_or_anothers_are_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    path = federation.files.receipts
    whole = path.read_bytes()
    with pytest.raises(ConfigError, match="rounds before are signed"):
        receipts_of(None, federation.files, NAMES, True)
    path.unlink()
    with pytest.raises(FedrayError, match="is missing, so the rounds before would have no receipts"):
        RoundReceipts(federation.signing, federation.files, NAMES, True)
    path.write_bytes(b"x" + whole + whole)
    with pytest.raises(FedrayError, match="line 1 is no signed line"):
        RoundReceipts(federation.signing, federation.files, NAMES, True)
    path.write_bytes(whole)
    with pytest.raises(FedrayError, match="of the run run, and this one is other"):
        RoundReceipts(federation.signing, federation.files, NAMES, True).begin(federation.pool, "other/1", 0, model(0))  # type: ignore[arg-type]
    with pytest.raises(FedrayError, match="not signed by the driver's key of this start"):
        signing = federation.signing.model_copy(update={"driver": str(tmp_path / "private" / "north.pem")})
        RoundReceipts(signing, federation.files, NAMES, True)
    with pytest.raises(ConfigError, match="a client is called 'driver'"):
        RoundReceipts(federation.signing, federation.files, ["driver"], False)


def test_a_part_with_several_turns_is_not_signed(federation: Federation) -> None:
    with pytest.raises(FedrayError, match="a signed receipt is for one update alone"):
        federation.pool.signers[0].leaving(ExactSum.zero(6, 4.0), [0, 0], "terms", exchange())


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    key = tmp_path / "private" / "north.pem"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="clients.signing.key: .* has the mode 0644"):
        ReceiptSigner(SigningPlace(str(key), str(tmp_path / "c")), "north", "run/1")


BASE: dict[str, Any] = {
    "name": "s",
    "rounds": 2,
    "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 6}},
    "model": {"kind": "softmax"},
    "training": {"lr": 0.1, "batch_size": 8, "steps": 1},
    "algorithm": {"kind": "fedavg", "weights": "uniform"},
    "tracking": {"enabled": False},
}
SIGNING = {"key": "/k/{client}.pem", "driver": "/k/driver.pem"}
REMOTE = {"placement": "remote", "gateway": {"listen": "localhost:7443", "identity": "/f"}}


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"clients": {"signing": SIGNING}}, "clients.signing: a hosted client has no process of its own"),
        (
            {"clients": {"placement": "dedicated", "signing": {**SIGNING, "driver": "driver.pem"}}},
            "clients.signing.driver: .* not absolute",
        ),
        ({"clients": {"placement": "dedicated", "signing": {**SIGNING, "chain": "c"}}}, "clients.signing.chain: .* not absolute"),
        ({"clients": {"placement": "dedicated", "signing": {"driver": "/d.pem"}}}, "clients.signing.key: missing"),
        (
            {"clients": {**REMOTE, "signing": SIGNING}, "data": {"source": "silos:a,b", "classes": 2}},
            "clients.signing.key: a silo signs by the key of its own identity",
        ),
        (
            {"clients": {"placement": "dedicated", "signing": SIGNING}, "sweep": {"space": {"training.lr": [0.1, 0.2]}}},
            "clients.signing: trials of a sweep run side by side",
        ),
        (
            {
                "clients": {"placement": "dedicated", "signing": SIGNING},
                "privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 8e-3, "ledger": "/books"},
            },
            r"privacy.incompatible.client.signing.*set privacy.regime=record",
        ),
    ],
)
def test_where_nobody_could_sign_or_receipts_would_tell_too_much_they_are_refused(sections: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_privacy(build_config(BASE | sections))
    check_privacy(build_config(BASE | {"clients": {"placement": "dedicated", "signing": SIGNING}}))
