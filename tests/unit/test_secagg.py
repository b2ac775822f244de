"""What members of secure aggregation refuse a driver that does not follow the protocol, and what it can learn from one that is masked."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from securesums import MODEL, ORDER, Attempt, Outcome, Tamper, is_shut, random_updates

from fedray import components
from fedray.choices import Choice
from fedray.errors import ConfigError
from fedray.secure.graph import sparse_degree
from fedray.secure.masks import agreed_key
from fedray.secure.protocol import Refused, TooFew, make_protocol
from fedray.secure.roster import LENGTHS
from fedray.secure.secagg import SecAgg
from fedray.secure.shamir import reconstruct, share
from fedray.secure.signing import Signer
from fedray.secure.wire import pack, pack_set, unpack

N = 6
UPDATES = random_updates(N, 50, 1)


def signers(number: int) -> dict[int, tuple[Signer]]:
    """Identities of so many members that know each other."""
    own = [Ed25519PrivateKey.generate() for _ in range(number)]
    known = frozenset(key.public_key().public_bytes_raw() for key in own)
    return {i: (Signer(key, known),) for i, key in enumerate(own)}


def to(victim: int, in_phase: str, change) -> Tamper:
    """Change what one member is sent in one phase."""
    return lambda phase, number, message: change(message) if (phase, number) == (in_phase, victim) else message


def run(tamper: Tamper, **arguments) -> Outcome:
    """An attempt of six members with a driver that changes messages; one may be lost."""
    return Attempt(SecAgg(fewest=3), UPDATES, tamper=tamper, **arguments).run()


def other_entry(number: int, data: bytes):
    """A change of one member's entry."""
    return lambda message: pack(unpack(message) | {number: data})


def swapped(a: int, b: int):
    """A change that gives two members each other's entry."""

    def change(message: bytes) -> bytes:
        entries = unpack(message)
        return pack(entries | {a: entries[b], b: entries[a]})

    return change


def without(number: int):
    """A change that takes one member's entry away."""
    return lambda message: pack({k: v for k, v in unpack(message).items() if k != number})


STRANGER = X25519PrivateKey.generate().public_key().public_bytes_raw() + X25519PrivateKey.generate().public_key().public_bytes_raw()
FORGED = {
    "its keys exchanged": ("shares", other_entry(2, STRANGER), "its own keys are not among those"),
    "its keys taken away": ("shares", without(2), "its own keys are not among those"),
    "a key twice": ("shares", lambda m: pack(unpack(m) | {6: unpack(m)[1]}), "two members have the same key"),
    "half of keys twice": ("shares", lambda m: pack(unpack(m) | {6: unpack(m)[1][:32] + STRANGER[:32]}), "two members have the same key"),
    "one key for both": ("shares", lambda m: pack(unpack(m) | {6: STRANGER[:32] * 2}), "two members have the same key"),
    "a key on which all agree": ("shares", other_entry(1, bytes(32) + STRANGER[:32]), "the public key 0+ is not valid"),
    "few keys": ("shares", lambda m: pack({k: unpack(m)[k] for k in (1, 2)}), "only 2 members have keys, and it takes 3"),
    "cut off": ("shares", lambda m: m[:-1], "the message is cut off"),
    "shares exchanged": ("train", swapped(0, 4), "what should be member 0's share was not sealed by it for this member in this attempt"),
    "a share changed": ("train", lambda m: m[:-1] + bytes([m[-1] ^ 1]), "member 5's share was not sealed by it"),
    "a share of a stranger": ("train", lambda m: pack(unpack(m) | {9: unpack(m)[1]}), "came from member 9, with which it shares nothing"),
    "its own share": ("train", lambda m: pack(unpack(m) | {2: unpack(m)[1]}), "came from member 2, with which it shares nothing"),
    "few shares": ("train", lambda m: pack({k: unpack(m)[k] for k in (0, 1)}), "only 3 in its neighbourhood have shared"),
    "too long a share": ("train", lambda m: pack({k: v + b"x" for k, v in unpack(m).items()}), "has 161 bytes"),
    "survivors without it": ("consistency", without(2), "it is said not to be in the sum, for which it has trained"),
    "few survivors": ("consistency", lambda m: pack_set([0, 2, 4]), "the sum is said to be that of 3 members, and it takes 4"),
    "a stranger alive": ("consistency", lambda m: pack(unpack(m) | {7: b""}), "member 7 is said to be in the sum, but has no keys"),
    "survivors twice": ("consistency", lambda m: m[:4] + m[4:12] + m[4:-8], "not in ascending order"),
    "few confirmations": ("unmask", lambda m: pack({k: unpack(m)[k] for k in (0, 1, 2)}), "only 3 members have confirmed"),
    "its confirmation exchanged": ("unmask", other_entry(2, bytes(32)), "its own confirmation is not among those"),
    "another's confirmation exchanged": ("unmask", other_entry(3, bytes(32)), "member 3 has trained from other globals"),
    "a stranger's confirmation": ("unmask", lambda m: pack(unpack(m) | {8: unpack(m)[1]}), "member 8 is said to have confirmed a sum that"),
}


@pytest.mark.parametrize("case", list(FORGED))
def test_a_member_refuses_forged_messages_and_stays_shut(case):
    phase, change, reason = FORGED[case]
    attempt = Attempt(SecAgg(fewest=3), UPDATES, tamper=to(2, phase, change))
    outcome = attempt.run()  # without member 2
    assert list(outcome.refusals) == [2]
    with pytest.raises(Refused, match=f"member 2 refuses in attempt 0 of round 3: .*{reason}"):
        raise Refused(outcome.refusals[2])
    assert is_shut(attempt.members[2])
    assert np.array_equal(outcome.total, UPDATES[outcome.survivors].sum(axis=0))


def test_a_member_that_dropped_out_cannot_be_claimed_to_be_in_the_sum():
    """Whoever did not share has no self-mask to take off, so the driver gains nothing by it but the pairwise masks of others."""
    claim = to(2, "consistency", lambda m: pack(unpack(m) | {5: b""}))
    outcome = run(claim, drops={"shares": [5]})
    assert "member 5 is said to be in the sum, but has not shared its secrets" in outcome.refusals[2]


@pytest.mark.parametrize("phase", ["keys", "shares", "train", "consistency", "unmask"])
def test_a_phase_is_answered_once(phase):
    attempt = Attempt(SecAgg(fewest=3), UPDATES)

    def twice(at: str, number: int, message: bytes) -> bytes:
        if (at, number) == (phase, 2):
            attempt.one(at, number, message, np.zeros(50, dtype=np.int64))
        return message

    attempt.tamper = twice
    assert f"it is asked for '{phase}', but the next phase is" in attempt.run().refusals[2]
    assert is_shut(attempt.members[2])


def test_phases_are_answered_in_order():
    for early in ("shares", "consistency", "unmask", "train", "other"):
        with pytest.raises(Refused, match=f"it is asked for '{early}', but the next phase is 'keys'"):
            SecAgg().member(ORDER, 0).answer(early, b"")
    values = np.ones(4, dtype=np.int64)
    with pytest.raises(Refused, match="it is asked for 'train', but the next phase is 'keys'"):
        SecAgg().member(ORDER, 0).ready(b"", MODEL)
    with pytest.raises(Refused, match="member 0 has no mask"):
        SecAgg().member(ORDER, 0).mask(values)
    assert (values == 1).all()
    attempt = Attempt(SecAgg(fewest=3), UPDATES)
    attempt.run()
    with pytest.raises(Refused, match="it is asked for 'keys', but the next phase is 'nothing'"):
        attempt.members[0].answer("keys", b"")


def test_a_member_never_gives_both_shares_of_another():
    """The survivors are said once; a driver that asks with other survivors afterwards is refused, and a phase has no second answer."""
    attempt = Attempt(SecAgg(fewest=3), UPDATES, drops={"train": [5]})
    outcome = attempt.run()
    for number in range(5):
        member = attempt.members[number]
        answered = unpack(outcome.said["unmask"][number])
        assert sorted(answered) == list(range(N)) and {len(s) for s in answered.values()} == {66}
        with pytest.raises(Refused):
            member.answer("consistency", pack_set([0, 1, 2, 3, 4, 5]))
        with pytest.raises(Refused):
            member.answer("unmask", outcome.told["unmask"][number])


def test_what_is_revealed_of_a_member_is_its_seed_or_its_key():
    """From the shares in the answers the driver gets the masks' key of who dropped out, and of a survivor only what is no such key."""
    outcome = run(lambda phase, number, message: message, drops={"train": [5]})
    shares = {n: unpack(answer) for n, answer in outcome.said["unmask"].items()}
    for member in range(N):
        secret = reconstruct({n + 1: shares[n][member] for n in list(shares)[:4]})
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        assert (public == outcome.said["keys"][member][32:]) == (member == 5)


@pytest.mark.parametrize("change", [{"round": 4}, {"attempt": 1}, {"job": "other"}, {"terms": "other"}])
def test_messages_of_another_attempt_are_worth_nothing(change):
    before = Attempt(SecAgg(fewest=3), UPDATES, order=replace(ORDER, **change)).run()
    for phase, reason in (
        ("shares", "its own keys are not among those"),
        ("train", "was not sealed by it for this member in this attempt"),
    ):
        now = run(lambda at, number, message, replayed=phase: before.told[at][number] if at == replayed and number == 2 else message)
        assert reason in now.refusals[2]


def test_a_member_of_another_order_is_left_out():
    attempt = Attempt(SecAgg(fewest=3), UPDATES)
    attempt.members[2] = SecAgg(fewest=3).member(replace(ORDER, terms="other"), 2)
    with pytest.raises(TooFew, match="of 6 members 0 were left after the phase 'training'"):
        attempt.run()  # nobody can open what it has sealed
    assert "member 2's share was not sealed by it" in attempt.refusals[0]


def test_masks_of_members_that_were_sent_different_globals_do_not_cancel():
    with pytest.raises(TooFew, match="members trained from 2 different globals, so their masks do not cancel"):
        run(lambda phase, number, message: message, models={1: bytes(32)})
    hiding = to(1, "unmask", lambda m: pack(dict.fromkeys(unpack(m), bytes(32))))
    attempt = Attempt(SecAgg(fewest=3), UPDATES, models={1: bytes(32)}, tamper=hiding)
    honest = attempt.one

    def forging(phase, number, message, total):
        answer = honest(phase, number, message, total)
        return MODEL if (phase, number) == ("consistency", 1) else answer

    attempt.one = forging
    outcome = attempt.run()
    assert not outcome.refusals  # nobody notices, but the driver reads nothing
    assert not (outcome.total == UPDATES.sum(axis=0)).any()


def test_two_members_agree_on_a_key_for_one_purpose_only():
    a, b, c = (X25519PrivateKey.generate() for _ in range(3))
    public = b.public_key().public_bytes_raw()
    key = agreed_key(a, public, b"mask", MODEL, (3, 1))
    assert key == agreed_key(b, a.public_key().public_bytes_raw(), b"mask", MODEL, (1, 3)) and len(key) == 32
    others = [
        agreed_key(a, public, b"channel", MODEL, (3, 1)),
        agreed_key(a, public, b"mask", bytes(32), (3, 1)),
        agreed_key(a, public, b"mask", MODEL, (3, 2)),
        agreed_key(c, public, b"mask", MODEL, (3, 1)),
    ]
    assert len({key, *others}) == 5


def test_the_floor_is_the_clients_own():
    """However few members a driver says there are, a client goes by its own order and arguments."""
    for protocol, order, floor in ((SecAgg(), ORDER, 5), (SecAgg(fewest=3), replace(ORDER, least=6), 6)):
        attempt = Attempt(SecAgg(fewest=3), UPDATES[:4], order=replace(order, least=1))
        attempt.members = [protocol.member(order, i) for i in range(4)]
        with pytest.raises(TooFew):
            attempt.run()
        assert all(f"only 4 members have keys, and it takes {floor}" in reason for reason in attempt.refusals.values())
        assert len(attempt.refusals) == 4


def test_identities_sign_keys_and_survivors():
    known = signers(N)
    outcome = run(lambda phase, number, message: message, arguments=known, drops={"train": [1]})
    assert not outcome.refusals
    assert np.array_equal(outcome.total, UPDATES[outcome.survivors].sum(axis=0))
    for case, change, reason in (
        ("unsigned", other_entry(3, STRANGER), "the identity behind the keys of member 3 is not known"),
        (
            "unknown",
            lambda m: pack(unpack(m) | {3: signed_by(signers(1)[0][0], 3)}),
            "the identity behind the keys of member 3 is not known",
        ),
        ("another's number", lambda m: pack({k: v for k, v in unpack(m).items() if k != 3} | {7: unpack(m)[3]}), "the keys of member 7"),
        ("signature kept", lambda m: pack(unpack(m) | {3: STRANGER + unpack(m)[3][64:]}), "the signature of the keys of member 3"),
    ):
        refused = Attempt(SecAgg(fewest=3), UPDATES, tamper=to(2, "shares", change), arguments=known)
        outcome = refused.run()
        assert reason in outcome.refusals[2], case


def signed_by(signer: Signer, number: int) -> bytes:
    """Keys of a member that the driver invents."""
    keys = SecAgg().member(ORDER, number, signer).answer("keys", b"")
    assert len(keys) == LENGTHS[1]
    return keys


def test_with_identities_all_unmask_the_same_sum():
    """A driver that tells members of different survivors gets no shares: the others' signatures are of another sum."""
    attempt = Attempt(SecAgg(fewest=3), UPDATES, tamper=to(2, "consistency", without(4)), arguments=signers(N))
    with pytest.raises(TooFew, match="of 6 members 0 were left after the phase 'unmask'"):
        attempt.run()
    assert all("the signature of the confirmation of member" in reason for reason in attempt.refusals.values())
    assert "the signature of the confirmation of member 2 is not right" in attempt.refusals[5]


def test_shares_that_are_wrong_are_noticed():
    attempt = Attempt(SecAgg(fewest=3), UPDATES, drops={"train": [5]})
    honest = attempt.one

    def lying(phase, number, message, total):
        answer = honest(phase, number, message, total)
        if (phase, number) == ("unmask", 1):
            return pack({k: bytes(60) + v[:6] for k, v in unpack(answer).items()})
        return answer

    attempt.one = lying
    with pytest.raises(TooFew, match="the shares of the mask of member 0 are wrong"):
        attempt.run()


def test_malformed_answers_count_as_none():
    attempt = Attempt(SecAgg(fewest=3), random_updates(12, 50, 2))
    honest = attempt.one
    garbage = {("keys", 0): b"", ("keys", 1): b"x" * 64, ("shares", 2): b"", ("consistency", 3): b"?", ("unmask", 4): pack({0: b""})}

    def clumsy(phase, number, message, total):
        if (phase, number) == ("keys", 1):
            honest(phase, number, message, total)
            return attempt.said["keys"].get(5, b"?")
        answer = honest(phase, number, message, total)
        return garbage.get((phase, number), answer)

    attempt.one = clumsy
    outcome = attempt.run()
    assert outcome.survivors == list(range(3, 12))
    assert np.array_equal(outcome.total, attempt.updates[3:].sum(axis=0))


def test_a_masked_update_is_uniform_and_never_twice_the_same():
    """Chi-square of the values of 10**6 bytes: 255 degrees of freedom, so 100 to 460 with a probability of 1 - 10**-12 at least."""
    updates = np.zeros((N, 125_000), dtype=np.int64)
    seen = []
    for _ in range(2):
        attempt = Attempt(SecAgg(fewest=3), updates)
        honest = attempt.one
        masked: dict[int, np.ndarray] = {}

        def watched(phase, number, message, total, honest=honest, masked=masked):
            before = total.copy()
            answer = honest(phase, number, message, total)
            if phase == "train":
                masked[number] = total - before
            return answer

        attempt.one = watched
        assert not attempt.run().total.any()
        seen += [masked[0], masked[5]]
    for vector in seen:
        assert 100 < chi_square(vector.view(np.uint8)) < 460
    for a, b in itertools.combinations(seen, 2):
        assert not (a == b).any()
        assert 100 < chi_square((a - b).view(np.uint8)) < 460


def chi_square(values: np.ndarray) -> float:
    """Of bytes against the uniform distribution."""
    counts = np.bincount(values, minlength=256)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_the_same_secret_is_never_shared_the_same_way():
    """The first of two shares of a fixed secret has uniform bits: each is set in 40 to 60 % of 2000 (probability above 1 - 10**-15)."""
    first = np.array([np.frombuffer(share(bytes(32), 2, [1, 2])[1][:65], dtype=np.uint8) for _ in range(2000)])
    set_bits = np.unpackbits(first, axis=1).mean(axis=0)
    assert set_bits.min() > 0.4 and set_bits.max() < 0.6


def test_sparse_graphs_grow_with_the_logarithm():
    degrees = [sparse_degree(10**e, 0.1, 0.1) for e in (3, 4, 5, 6)]
    assert degrees == [(132, 98), (166, 122), (182, 133), (200, 146)]
    steps = np.diff([d[0] for d in degrees if d])
    assert steps.max() < 40
    assert sparse_degree(100, 0.1, 0.1) == (42, 33)
    assert sparse_degree(100, 0.45, 0.1) is None  # only all others are enough


@pytest.mark.parametrize("members", [100, 400])
def test_a_sparse_graph_holds_what_it_promises(members):
    """Random dropping and colluding members: neighbourhoods keep the threshold, and no run of half a degree reaches it with its colluders."""
    degree, threshold = sparse_degree(members, 0.1, 0.1)
    random = np.random.default_rng(1)
    for _ in range(200):
        stays, colludes = np.ones(members, dtype=int), np.zeros(members, dtype=int)
        stays[random.choice(members, members // 10, replace=False)] = 0
        colludes[random.choice(members, members // 10, replace=False)] = 1
        near = np.arange(-degree // 2, degree // 2 + 1)[None] + np.arange(members)[:, None]
        assert stays[near % members].sum(axis=1).min() >= threshold
        after = np.arange(1, degree // 2 + 1)[None] + np.arange(members)[:, None]
        assert degree // 2 + 1 + colludes[after % members].sum(axis=1).max() < threshold


def test_a_member_keeps_its_secrets_to_itself():
    member = SecAgg().member(ORDER, 0)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copied(member)
    assert repr(member) == "SecAggMember(0)"
    attempt = Attempt(SecAgg(fewest=3), UPDATES)
    attempt.run()
    assert not vars(attempt.members[0]._secrets) and not attempt.members[0]._held


def test_the_config_names_it():
    made = make_protocol(Choice(kind="secagg", fewest=7))
    assert made == SecAgg(fewest=7)
    assert made.patience == 60.0 and made.terms()["SecAgg"]["threshold"] == 2 / 3
    (row,) = [row for row in components.listing(components.PROTOCOLS) if row.name == "secagg"]
    assert row.summary.startswith("Masks that cancel") and row.source.startswith("Bonawitz")
    made.check(1, 7)
    with pytest.raises(ConfigError, match=r"secure.fewest: no sum of fewer than 7 members is read, but a cohort has 6"):
        made.check(1, 6)
    for key, value in (
        ("threshold", 0.5),
        ("threshold", 1.1),
        ("fewest", 2),
        ("complete", 0),
        ("dropping", 0.5),
        ("colluding", 0.4),
        ("patience", 0.0),
    ):
        with pytest.raises(ConfigError, match=rf"secure.{key}: should be .*, but is {value:g}"):
            make_protocol(Choice(kind="secagg", **{key: value}))
