"""Encrypted sums: the bytes of a plain sum, and what a client does not open for a driver that wants more."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from securesums import MODEL, ORDER, Attempt, Outcome, Tamper, random_updates

from fedray.aggregation.exact import ExactSum
from fedray.aggregation.sealed import SealedSum
from fedray.cli import cli
from fedray.clients.members import enrolled
from fedray.clients.messages import PartialSum, added_up
from fedray.config import Data
from fedray.data.dataset import load_federation
from fedray.errors import ConfigError, FedrayError
from fedray.secure.bfv import PRIME, Bfv, BfvScheme
from fedray.secure.ckks import FLOOD, Ckks, CkksScheme, gaussian
from fedray.secure.consortium import make_consortium_key, read_consortium_key
from fedray.secure.encrypted import Encrypted
from fedray.secure.encrypted_member import NONCE, quorum
from fedray.secure.marks import derived, own_marks, products
from fedray.secure.protocol import GivenUp, Refused, Ring, TooFew
from fedray.secure.wire import pack, unpack

pytest.importorskip("tenseal", reason="the extra 'encrypted' is not installed")

N = 6
UPDATES = random_updates(N, 50, 1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys of two consortia."""
    where = tmp_path_factory.mktemp("keys")
    for name in ("bfv", "another"):
        make_consortium_key(BfvScheme(), where / name)
    make_consortium_key(CkksScheme(), where / "ckks")
    return where


@pytest.fixture(scope="module")
def bfv(keys: Path) -> Bfv:
    """The protocol with the first key."""
    return Bfv(str(keys / "bfv"), fewest=3)


@pytest.fixture(scope="module")
def ckks(keys: Path) -> Ckks:
    """The approximate protocol."""
    return Ckks(str(keys / "ckks"), fewest=3)


@pytest.fixture(params=["bfv", "ckks"])
def either(request: pytest.FixtureRequest, bfv: Bfv, ckks: Ckks) -> Encrypted:
    """Both protocols, one after the other."""
    return bfv if request.param == "bfv" else ckks


def sealed(protocol: Encrypted, members: int, order=ORDER) -> tuple[Attempt, list]:
    """An attempt whose members have trained, and what each has sent."""
    attempt, sent = Attempt(protocol, UPDATES[:members] >> 8, order=order), []
    for member, update in zip(attempt.members, attempt.updates, strict=True):
        member.answer("nonce", b"")
        member.ready(b"", MODEL)
        member.mask(update)
        sent.append(member.seal(update, [member]))
    return attempt, sent


def confirmed(attempt: Attempt, numbers: list[int]) -> bytes:
    """Confirmations of a sum, as they are sent to the member that opens it."""
    nonces = sorted(attempt.members[n]._nonce for n in numbers)
    said = {attempt.members[n]._nonce: attempt.members[n].answer("confirm", b"".join(nonces)) for n in numbers}
    return pack({place: said[nonce] for place, nonce in enumerate(nonces)})


@settings(max_examples=15, deadline=None)
@given(members=st.integers(3, 9), size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1))
def test_an_opened_sum_has_the_bytes_of_a_plain_one(bfv: Bfv, members: int, size: int, seed: int) -> None:
    updates = random_updates(members, size, seed)
    assert Attempt(bfv, updates).run().total.tobytes() == updates.sum(axis=0).tobytes()


@pytest.mark.parametrize(
    "drops", [{"nonce": [1]}, {"train": [0, 4]}, {"confirm": [2]}, {"open": [5]}, {"nonce": [0], "train": [1], "open": [2]}]
)
def test_whoever_drops_out_the_sum_is_that_of_the_others(bfv: Bfv, drops) -> None:
    outcome = Attempt(bfv, UPDATES, drops=drops).run()
    assert outcome.total.tobytes() == UPDATES[outcome.survivors].sum(axis=0).tobytes()


@pytest.mark.parametrize(
    ("drops", "error", "says"),
    [
        ({"nonce": [0, 1, 2, 3]}, TooFew, "2 were left after the phase 'nonce', and it takes 3"),
        ({"train": [0, 1, 2, 3]}, TooFew, "2 were left after the phase 'training', and it takes 3"),
        ({"confirm": [0, 1]}, GivenUp, "4 were left after the phase 'confirm', and it takes 5"),
        ({"open": range(6)}, GivenUp, "no client that was asked to open the sum has answered"),
    ],
)
def test_below_the_threshold_nothing_is_opened(bfv: Bfv, drops, error: type[TooFew], says: str) -> None:
    with pytest.raises(TooFew, match=says) as few:
        Attempt(bfv, UPDATES, drops=drops).run()
    assert type(few.value) is error


def test_the_largest_limbs_of_the_largest_cohort_add_up(keys: Path) -> None:
    """The noise and the plaintext at the bounds from which the parameters follow: 1000 parts of -1, whose limbs are all ones."""
    scheme, key = BfvScheme(), read_consortium_key(BfvScheme, str(keys / "bfv"))
    values = np.full(2048, -1, dtype=np.int64)
    total = scheme.encrypt(key.context, scheme.encode(values))
    part = pickle.loads(pickle.dumps(total))
    doubled, number = part, 1000 - 1
    while number:  # the number's bits: additions of noise that is not independent, the worst case
        if number & 1:
            total.add(doubled)
        number >>= 1
        doubled, twice = pickle.loads(pickle.dumps(doubled)), doubled
        doubled.add(twice)
    found = scheme.decode(scheme.decrypt(key.context, total._written()))
    assert (found == -1000).all()
    assert PRIME > 1000 * ((1 << 32) - 1) and 2**59 / (2 * PRIME) > 1000 * 22


# -- CKKS ----------------------------------------------------------------------------------------


def near(members: int, size: int, seed: int, magnitude: float) -> Ring:
    """Updates on the grid of a sum of so many."""
    draws = np.random.default_rng(seed).normal(0.0, magnitude, (members, size))
    return np.rint(np.ldexp(draws, ExactSum.zero(1, members).bits)).astype(np.int64)


@settings(max_examples=15, deadline=None)
@given(members=st.integers(3, 9), size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), magnitude=st.floats(1e-2, 10.0))
def test_a_sum_under_ckks_is_near_the_plain_one(ckks: Ckks, members: int, size: int, seed: int, magnitude: float) -> None:
    updates = near(members, size, seed, magnitude)
    opened, plain = Attempt(ckks, updates).run().total, updates.sum(axis=0)
    assert np.abs(opened - plain).max() <= 1e-4 * magnitude * 2.0 ** ExactSum.zero(1, members).bits
    assert (opened != plain).any()  # with the noise that hides the ciphertexts' own


def test_values_at_the_bound_pass_and_a_thousand_parts_keep_their_marks(ckks: Ckks) -> None:
    scheme, key = CkksScheme(), read_consortium_key(CkksScheme, ckks.key)
    values = np.array([1, -1, 0, 1] * 1000, dtype=np.int64) << 62
    assert (
        np.abs(scheme.decrypt(key.context, scheme.encrypt(key.context, scheme.encode(values))._written()) - np.ldexp(values, -62)).max()
        < 1e-13
    )
    numbers, owns = scheme.encode(near(1, 10, 1, 1e-3)[0]), [derived(bytes(32), bytes([n % 256, n // 256])) for n in range(1000)]
    total, *others = [scheme.encrypt(key.context, numbers, scheme.marks(numbers, bytes(32), [own])) for own in owns]
    for part in others:
        total.add(part)
    found = scheme.decrypt(key.context, total._written())
    assert scheme.agree(found[-2:], scheme.marks(found[:-2], bytes(32), owns))
    assert not scheme.agree(found[-2:], scheme.marks(found[:-2], bytes(32), owns[1:]))


def test_the_noise_of_whoever_opens_is_gaussian_and_larger_than_that_of_a_ciphertext(ckks: Ckks) -> None:
    drawn = gaussian(100_001)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1.0) < 0.01 and abs((drawn**4).mean() - 3.0) < 0.2
    scheme, key = CkksScheme(), read_consortium_key(CkksScheme, ckks.key)
    numbers = scheme.encode(near(1, 2048, 1, 1.0)[0])
    error = scheme.decrypt(key.context, scheme.encrypt(key.context, numbers)._written()) - numbers
    assert 16 * error.std() < 2.0**FLOOD


# -- a driver that does not follow the protocol --------------------------------------------------


def test_no_client_opens_a_single_update_or_a_sum_in_which_one_counts_twice(either: Encrypted) -> None:
    for choose in (lambda sent: sent[:1], lambda sent: [*sent, sent[0]], lambda sent: sent[:-1], lambda sent: [sent[0]] * 6):
        attempt, sent = sealed(either, 6)
        total, *others = [pickle.loads(pickle.dumps(part)) for part in choose(sent)]
        for part in others:
            total.add(part)
        with pytest.raises(Refused, match="what it was to open is not the sum of the members' updates, each once"):
            attempt.members[0].answer("open", pack({0: confirmed(attempt, list(range(6))), 1: total.data()}))


def test_nor_an_update_of_another_attempt_or_of_a_member_that_is_not_named(either: Encrypted) -> None:
    attempt, sent = sealed(either, 6)
    _, earlier = sealed(either, 6, replace(ORDER, attempt=1))
    total = sent[0]
    for part in [*sent[1:5], earlier[5]]:
        total.add(part)
    with pytest.raises(Refused, match="is not the sum of the members' updates"):
        attempt.members[0].answer("open", pack({0: confirmed(attempt, list(range(6))), 1: total.data()}))


def test_a_sum_that_others_have_not_confirmed_is_not_opened(either: Encrypted) -> None:
    attempt, sent = sealed(either, 6)
    said = unpack(confirmed(attempt, list(range(6))))
    few = {place: said[place] for place in list(said)[: quorum(6) - 1]}
    forged = said | {0: bytes(32)}
    for confirmations, says in ((few, "only 4 of 6 members have confirmed the sum, and it takes 5"), (forged, "has not confirmed the sum")):
        with pytest.raises(Refused, match=says):
            attempt.members[4 if confirmations is few else 5].answer("open", pack({0: pack(confirmations), 1: sent[0].data()}))


def to(phase: str, victim: int, change: Callable[[bytes], bytes]) -> Tamper:
    """Change what one member is sent in one phase."""
    return lambda at, number, message: change(message) if (at, number) == (phase, victim) else message


def nonces(message: bytes) -> list[bytes]:
    """The members that a message names."""
    return [message[at : at + NONCE] for at in range(0, len(message), NONCE)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[: 2 * NONCE], "and it takes 3|it is said not to be in the sum"),
        (lambda m: m[:-1], "not named in ascending order"),
        (lambda m: b"".join(nonces(m)[::-1]), "not named in ascending order"),
        (lambda m: m + m[-NONCE:], "not named in ascending order"),
        (lambda m: b"", "not named in ascending order"),
        (lambda m: m[:NONCE] + b"x" * NONCE * 3, "not named in ascending order"),
    ],
)
def test_a_member_does_not_confirm_what_is_no_sum_with_its_update(bfv: Bfv, change, says: str) -> None:
    outcome: Outcome = Attempt(bfv, UPDATES, tamper=to("confirm", 2, change)).run()
    with pytest.raises(Refused, match=says):
        raise Refused(outcome.refusals[2])
    assert outcome.total.tobytes() == UPDATES.sum(axis=0).tobytes()  # the others go on


def test_members_that_trained_from_other_globals_or_hold_another_key_are_noticed(bfv: Bfv, keys: Path) -> None:
    with pytest.raises(GivenUp):
        Attempt(bfv, UPDATES, models={1: bytes(32)}).run()
    other = Attempt(bfv, UPDATES)
    other.members[1] = Bfv(str(keys / "another"), fewest=3).member(ORDER, 1)
    with pytest.raises(GivenUp):
        other.run()
    assert any("holds another secure.key" in said for said in other.refusals.values())


def test_each_phase_is_answered_once_and_in_order_and_an_opened_attempt_stays_the_only_one(bfv: Bfv) -> None:
    attempt = Attempt(bfv, UPDATES)
    with pytest.raises(Refused, match="the phase 'confirm' is out of order"):
        bfv.member(ORDER, 0).answer("confirm", b"")
    attempt.run()
    assert all(member.revealed for member in attempt.members)
    for phase in ("nonce", "confirm", "open", "other"):
        for member in attempt.members:
            with pytest.raises(Refused):
                member.answer(phase, b"")
    member = bfv.member(ORDER, 0)
    member.answer("nonce", b"")
    with pytest.raises(Refused, match="out of order"):
        member.seal(UPDATES[0], [member])


def test_the_driver_gets_no_key_and_two_ciphertexts_of_one_update_are_alike_in_nothing(bfv: Bfv, keys: Path) -> None:
    (_, first), (attempt, second) = sealed(bfv, 3), sealed(bfv, 3)
    for secret in (attempt.members[0], attempt.members[0]._key):
        for leak in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="does not leave the client's process"):
                leak(secret)
    key = (keys / "bfv").read_bytes()
    sent = pickle.dumps(first[0])
    assert not any(key[at : at + 16] in sent for at in (27, 43, *range(1000, len(key) - 16, 16)))  # the parameters are in both
    a, b = (np.frombuffer(part.data(), dtype=np.uint8) for part in (first[0], second[0]))
    size = min(len(a), len(b))
    assert np.mean(a[:size] == b[:size]) < 0.02


# -- parts on their way --------------------------------------------------------------------------


def test_parts_of_a_node_are_added_up_on_it_and_none_can_be_read_or_mixed_with_others(bfv: Bfv) -> None:
    attempt, sent = sealed(bfv, 4)
    parts = []
    for client, (update, leaves) in enumerate(zip(attempt.updates, sent, strict=True)):
        plain = ExactSum.of_integers(update.size, 6)
        plain.values += update
        plain.weight, plain.count = 1.0, 1
        parts.append(pickle.loads(pickle.dumps(PartialSum(0, SealedSum.of(plain, leaves), [client], travelled=leaves.nbytes))))
    assert not any(part.total.values.any() for part in parts)
    total = added_up(parts)
    assert isinstance(total.total, SealedSum)
    assert (total.clients, total.travelled, total.total.count) == ([0, 1, 2, 3], parts[0].travelled, 4)
    opened = attempt.members[0].answer("open", pack({0: confirmed(attempt, list(range(4))), 1: total.total.data()}))
    assert np.array_equal(np.frombuffer(opened, dtype="<i8"), attempt.updates.sum(axis=0))
    for one, other in ((plain, parts[0].total), (parts[0].total, plain)):
        with pytest.raises(FedrayError, match="a sum that is sealed cannot be added to one that is not"):
            one.merge(other)
    another = SealedSum.of(plain, BfvScheme().encrypt(BfvScheme().context(), np.zeros(10_000, dtype=np.int64)))
    with pytest.raises(FedrayError, match="were not encrypted alike"):
        parts[0].total.merge(another)


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_is_made_by_a_command_for_its_owner_alone_and_no_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert CliRunner().invoke(cli, ["encryption-key", str(path)]).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_consortium_key(BfvScheme, str(path)).secret != bytes(32)
    again = CliRunner().invoke(cli, ["encryption-key", str(path)])
    assert again.exit_code != 0 and "exists; name another file" in again.output
    missing = CliRunner().invoke(cli, ["encryption-key", str(tmp_path / "no" / "key")])
    assert missing.exit_code != 0 and "cannot be written (No such file or directory)" in missing.output


def test_a_file_that_is_no_key_or_open_to_others_is_refused(tmp_path: Path, keys: Path) -> None:
    whole = (keys / "bfv").read_bytes()
    for name, data, mode, says in (
        ("open", whole, 0o640, "has the mode 0640; set it to 0600"),
        ("other", b"-----BEGIN PRIVATE KEY-----", 0o600, "is no key for secure.kind=bfv; fedray encryption-key makes one"),
        ("short", whole[:-200], 0o600, "is damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        path.chmod(mode)
        with pytest.raises(ConfigError, match=says):
            Bfv(str(path)).enrol("client")
    data = load_federation(Data(source="sklearn:digits", partition={"kind": "iid", "clients": 3}), 1)
    with pytest.raises(ConfigError, match="cannot be read where the process runs that needs it"):
        enrolled(Bfv(str(tmp_path / "none")), data)  # in an actor of several clients, too, before the first round


def test_a_cohort_that_is_too_large_for_the_noise_is_refused_before_the_run(bfv: Bfv) -> None:
    bfv.check(3, 1000)
    with pytest.raises(
        ConfigError, match="adds up 1000 clients at the most.*a cohort has 1001; draw fewer clients, or use secure.kind=secagg"
    ):
        bfv.check(3, 1001)


# -- marks ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40_000), seed=st.integers(0, 2**32 - 1))
def test_marks_are_linear_and_change_with_every_number(size: int, seed: int) -> None:
    draws, key = np.random.default_rng(seed), seed.to_bytes(32, "little")
    a, b = draws.integers(0, PRIME, (2, size))
    sums = [(x + y) % PRIME for x, y in zip(products(a, key, PRIME), products(b, key, PRIME), strict=True)]
    assert products((a + b) % PRIME, key, PRIME) == sums
    changed = a.copy()
    changed[draws.integers(size)] ^= 1
    assert products(changed, key, PRIME) != products(a, key, PRIME)
    assert products(a, derived(key, b"other"), PRIME) != products(a, key, PRIME)
    assert own_marks(key, PRIME) != own_marks(derived(key), PRIME)


def test_products_are_what_they_are_called() -> None:
    values = np.random.default_rng(1).integers(0, PRIME, 20_000)
    ones = [int(products(np.eye(1, 20_000, n, dtype=np.int64)[0], bytes(32), PRIME)[0]) for n in (0, 1, 19_999)]
    expected = sum(one * int(values[n]) for one, n in zip(ones, (0, 1, 19_999), strict=True)) % PRIME
    picked = np.zeros_like(values)
    picked[[0, 1, -1]] = values[[0, 1, -1]]
    assert products(picked, bytes(32), PRIME)[0] == expected
