"""A client's chain of receipts goes on over processes and runs, and never forks without somebody noticing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from verify_receipts import merkle

from fedray.errors import LedgerError
from fedray.privacy.receiptchain import ReceiptChain
from fedray.secure.merkle import leaf_hash, root_of
from fedray.secure.signedlines import FIRST, read_signed, sign_line

OWN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def opened(path: Path, job: str = "run/1", pinned: str | None = None, client: str = "north") -> ReceiptChain:
    return ReceiptChain(path, OWN, client, job, pinned, wait=0.0)


@given(st.lists(st.sampled_from(["sign", "restart", "torn", "other run"]), max_size=12))
@settings(max_examples=60)
def test_a_chain_goes_on_over_restarts_runs_and_torn_lines(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    path, run, signed, here = tmp_path_factory.mktemp("chain") / "north.receipts", 1, 0, 0
    chain = opened(path, "1/1")
    for step in steps:
        if step == "sign":
            line = chain.sign({"round": signed, "ran": {}})
            signed, here = signed + 1, here + 1
            assert (line.body["number"], line.body["run_number"], line.body["run"]) == (signed, here, str(run))
            continue
        chain.close()
        if step == "torn" and signed:
            path.write_bytes(path.read_bytes() + b'{"attempt":0,"chain":"6')
        if step == "other run":
            run, here = run + 1, 0
        chain = opened(path, f"{run}/1")
    assert [read_signed(line).body["run_number"] for line in chain.after(0)] == list(range(1, here + 1))
    assert list(chain.after(here)) == []
    chain.close()
    lines = [read_signed(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    assert len(lines) == signed and all(line.signed_by(OWN.public_key().public_bytes_raw()) for line in lines)
    before = [FIRST, *(line.sha256 for line in lines)]
    assert [line.body["previous"] for line in lines] == before[: len(lines)]
    assert len({line.body["chain"] for line in lines}) <= 1


def test_one_process_at_a_time_holds_a_chain(tmp_path: Path) -> None:
    first = opened(tmp_path / "c")
    first.sign({"ran": {}})
    with pytest.raises(LedgerError, match="is in use by job 'run/1'"):
        opened(tmp_path / "c")
    first.close()
    opened(tmp_path / "c").close()


def test_an_older_copy_is_refused_where_the_driver_knows_more(tmp_path: Path) -> None:
    path = tmp_path / "c"
    chain = opened(path)
    chain.sign({"ran": {}})
    older, last = path.read_bytes(), chain.sign({"ran": {}})
    chain.close()
    path.write_bytes(older)
    with pytest.raises(LedgerError, match="was brought back from an older copy"):
        opened(path, "run/2", last.sha256)
    path.unlink()
    with pytest.raises(LedgerError, match="is missing though it has been written before"):
        opened(path, "run/2", last.sha256)


def test_a_file_that_is_replaced_or_added_to_while_it_is_held_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "c"
    chain = opened(path)
    chain.sign({"ran": {}})
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(LedgerError, match="someone else wrote to it; nothing more can be written"):
        chain.sign({"ran": {}})
    path.unlink()
    with pytest.raises(LedgerError, match="the file is gone"):
        chain.sign({"ran": {}})


def test_a_changed_line_another_key_and_another_client_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    chain = opened(path)
    for k in range(3):
        chain.sign({"round": k, "ran": {}})
    chain.close()
    whole = path.read_bytes()
    for at in range(0, len(whole) - 1, 7):
        if whole[at + 1 : at + 2] == b"\n" or whole[at : at + 1] == b"\n":
            continue
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(LedgerError, match=re.escape(f"{path}: line ")):
            opened(path)
    lines = whole.splitlines(keepends=True)
    for changed in ([lines[1], lines[2]], [lines[0], lines[2]], [lines[1], lines[0], lines[2]], [*lines, lines[2]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(LedgerError, match="does not follow the line before it"):
            opened(path)
    path.write_bytes(whole)
    with pytest.raises(LedgerError, match="is not signed by client 'south'"):
        opened(path, client="south")
    with pytest.raises(LedgerError, match="a key has its own chain"):
        ReceiptChain(path, Ed25519PrivateKey.generate(), "north", "run/1")


@given(st.lists(st.binary(max_size=3), max_size=40))
def test_the_root_is_that_of_the_recursion_in_the_standard(leaves: list[bytes]) -> None:
    assert root_of([leaf_hash(leaf) for leaf in leaves]) == merkle(leaves).hex()


@given(
    st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6) | st.floats(allow_nan=False, allow_infinity=False), max_size=4)
)
def test_a_signed_line_is_read_as_it_was_written(body: dict[str, object]) -> None:
    line = sign_line({**body, "kind": "receipt"}, OWN)
    found = read_signed(line.line)
    assert found.body == {**body, "kind": "receipt", "key": line.key} and b"\n" not in line.line
    assert found.signed_by(OWN.public_key().public_bytes_raw())
    assert not found.signed_by(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_a_signature_has_one_way_to_be_written() -> None:
    line = sign_line({"kind": "receipt"}, OWN).line
    for other in (line.upper(), line[:-4] + line[-4:].upper(), line[:-3] + b" " + line[-2:], line + b" "):
        if other != line:
            with pytest.raises(ValueError):
                read_signed(other)
