"""Drivers that want a single update: what each tries, and with which reason the clients refuse it.

Where nobody can notice, as without identities, the tests show that the driver reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesums import MODEL, ORDER, Attempt, Outcome, random_updates

from fedray.clients.members import TRAIN, Members
from fedray.clients.messages import RoundTask
from fedray.exchange import Exchange, Field
from fedray.secure.protocol import Ask, GivenUp, Refused, TooFew, Train
from fedray.secure.secagg import SecAgg
from fedray.secure.shamir import reconstruct
from fedray.secure.signing import Signer
from fedray.secure.wire import pack, pack_set, unpack

N, VICTIM = 6, 5
UPDATES = random_updates(N, 50, 1)
PROTOCOL = SecAgg(fewest=4)
OTHER_MODEL = bytes(32)


def signers() -> dict[int, tuple[Signer]]:
    """Identities of all members."""
    own = [Ed25519PrivateKey.generate() for _ in range(N)]
    known = frozenset(key.public_key().public_bytes_raw() for key in own)
    return {i: (Signer(key, known),) for i, key in enumerate(own)}


def refusals(attempt: Attempt, phase: str, messages: Mapping[int, bytes]) -> dict[int, str]:
    """Why members refuse what they are asked in a phase, by number; the answers of the others are in ``attempt.said``."""
    said: dict[int, bytes] = {}
    found: dict[int, str] = {}
    for number, message in messages.items():
        try:
            said[number] = attempt.members[number].answer(phase, message)
        except Refused as error:
            found[number] = str(error)
    attempt.said[phase] = said
    return found


def until(attempt: Attempt, phase: str) -> None:
    """Play an attempt honestly up to a phase, which nobody answers."""
    attempt.drops = {**attempt.drops, phase: range(N)}
    with pytest.raises(TooFew):
        attempt.run()


class TestDifferentModelsToDifferentClients:
    """Pasquini et al. 2022: a client that trains from other globals would be the only one whose update is not near zero."""

    def test_all_refuse_to_unmask_a_sum_of_updates_from_several_models(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, models={VICTIM: OTHER_MODEL})
        with pytest.raises(TooFew, match="trained from 2 different globals"):
            attempt.run()
        confirmations = pack(attempt.said["consistency"])
        found = refusals(attempt, "unmask", dict.fromkeys(range(N), confirmations))
        assert all("has trained from other globals" in found[number] for number in range(N))

    def test_hiding_the_victims_confirmation_leaves_its_mask_on(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, models={VICTIM: OTHER_MODEL})
        honest = attempt.one
        attempt.one = lambda phase, number, message, total: (  # type: ignore[method-assign]
            b"" if (phase, number) == ("consistency", VICTIM) else honest(phase, number, message, total)
        )
        outcome = attempt.run()  # its own confirmation was never asked for, and the others' suffice
        assert not outcome.refusals
        assert not (outcome.total == UPDATES.sum(axis=0)).any()

    def test_with_identities_a_forged_confirmation_is_noticed(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, models={VICTIM: OTHER_MODEL}, arguments=signers())
        with pytest.raises(TooFew):
            attempt.run()
        said = attempt.said["consistency"]
        forged = pack(said | {VICTIM: MODEL + said[VICTIM][32:]})
        found = refusals(attempt, "unmask", dict.fromkeys(range(VICTIM), forged))
        assert all(f"the signature of the confirmation of member {VICTIM} is not right" in found[number] for number in range(VICTIM))


class TestBothSharesOfOneClient:
    """Whoever has both b_u and s_u can read the update of u. Its update arrives, and the driver wants both."""

    def test_no_member_gives_the_second_share(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES)
        outcome = attempt.run()
        everyone_else = pack_set(range(VICTIM))
        for phase, message in (("consistency", everyone_else), ("unmask", outcome.told["unmask"][0])):
            again = Attempt(PROTOCOL, UPDATES)
            again.run()
            found = refusals(again, phase, dict.fromkeys(range(N), message))
            assert len(found) == N
            assert all(f"it is asked for '{phase}', but the next phase is 'nothing'" in reason for reason in found.values())

    def test_asking_one_half_for_one_share_and_the_other_half_for_the_other_gives_neither(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES)
        until(attempt, "consistency")
        halves = {number: range(N) if number < 3 else range(VICTIM) for number in range(VICTIM)}
        assert not refusals(attempt, "consistency", {n: pack_set(survivors) for n, survivors in halves.items()})
        found = refusals(attempt, "unmask", dict.fromkeys(range(VICTIM), pack(attempt.said["consistency"])))
        assert set(found) <= {0, 1, 2, 3, 4}
        shares = {n: unpack(answer)[VICTIM] for n, answer in attempt.said["unmask"].items()}
        for half in (range(3), range(3, VICTIM)):  # it takes four shares
            with pytest.raises(ValueError, match="do not belong to one secret"):
                reconstruct({n + 1: shares[n] for n in half if n in shares})

    def test_with_identities_the_halves_notice_each_other(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, arguments=signers())
        until(attempt, "consistency")
        refusals(attempt, "consistency", {n: pack_set(range(N) if n < 3 else range(VICTIM)) for n in range(VICTIM)})
        found = refusals(attempt, "unmask", dict.fromkeys(range(VICTIM), pack(attempt.said["consistency"])))
        assert sorted(found) == list(range(VICTIM))
        assert all("the signature of the confirmation of member" in reason for reason in found.values())


class TestForgedSurvivorSet:
    """The driver says another set of survivors than that whose updates are in the sum."""

    @pytest.mark.parametrize(
        ("forge", "reason"),
        [
            (lambda number: pack_set(set(range(N)) - {number}), "it is said not to be in the sum, for which it has trained"),
            (
                lambda number: pack_set({number, (number + 1) % N, (number + 2) % N}),
                "the sum is said to be that of 3 members, and it takes 4",
            ),
            (lambda number: pack_set([*range(N), 9]), "member 9 is said to be in the sum, but has no keys"),
        ],
        ids=["without the asked", "too few", "a stranger"],
    )
    def test_what_cannot_be_is_refused(self, forge: Callable[[int], bytes], reason: str) -> None:
        attempt = Attempt(PROTOCOL, UPDATES)
        until(attempt, "consistency")
        found = refusals(attempt, "consistency", {number: forge(number) for number in range(N)})
        assert len(found) == N
        assert all(reason in said for said in found.values())

    def test_a_set_that_could_be_but_is_not_gives_the_wrong_masks(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES)
        forged = pack_set(range(VICTIM))
        attempt.tamper = lambda phase, number, message: forged if phase == "consistency" and number != VICTIM else message
        with pytest.raises(GivenUp):
            attempt.run()
        reason = f"member {VICTIM} is said to have confirmed a sum that it is not in"
        assert all(reason in attempt.refusals[number] for number in range(VICTIM))

        hiding = Attempt(PROTOCOL, UPDATES)
        hiding.tamper = lambda phase, number, message: (
            pack({k: v for k, v in unpack(message).items() if k != VICTIM}) if phase == "unmask" else attempt.tamper(phase, number, message)
        )
        outcome = hiding.run()  # the driver has b of five, and s of one whose update is in the sum
        assert not (outcome.total == UPDATES.sum(axis=0)).any()


class TestDroppedClientClaimedAlive:
    """A client never sent an update, and the driver says that it is in the sum."""

    def test_one_that_has_not_shared_is_noticed(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, drops={"shares": [VICTIM]})
        attempt.tamper = lambda phase, number, message: pack_set(range(N)) if phase == "consistency" else message
        with pytest.raises(TooFew):
            attempt.run()
        reason = f"member {VICTIM} is said to be in the sum, but has not shared its secrets"
        assert len(attempt.refusals) == VICTIM
        assert all(reason in said for said in attempt.refusals.values())

    def test_one_that_has_shared_gives_the_driver_a_mask_that_is_in_no_sum(self) -> None:
        attempt = Attempt(PROTOCOL, UPDATES, drops={"train": [VICTIM]})
        attempt.tamper = lambda phase, number, message: pack_set(range(N)) if phase == "consistency" else message
        with pytest.raises(GivenUp, match=f"the shares of member {VICTIM} give a key that is not its own"):
            attempt.run()  # pairwise masks with the victim are left in the sum
        found = refusals(attempt, "unmask", dict.fromkeys(range(VICTIM), attempt.told["unmask"][0]))
        assert all("the next phase is 'nothing'" in found[number] for number in range(VICTIM))  # and the key comes no more


class TestReplayedRound:
    """Two attempts of one round, whose survivors differ by one client, would show the update of this client."""

    EXCHANGE = Exchange((Field("model", 50),))
    WEIGHTS = np.zeros(50, dtype=np.float32)

    def play(self, silos: list[Members], task: RoundTask, drops: Mapping[str, list[int]]) -> tuple[dict[int, str], Outcome | None]:
        """An attempt of silos, each in its own process; who refuses and why, and what came of it if the driver could read the sum."""
        order = replace(ORDER, round=task.round, attempt=task.attempt)
        conduct, told, gone, total = PROTOCOL.conduct(order, N), dict[int, str](), set[int](), np.zeros(50, dtype=np.int64)
        step, survivors = next(conduct), list[int]()
        try:
            while True:
                phase, messages = (step.phase, step.messages) if isinstance(step, Ask) else (TRAIN, step.inbox)
                gone |= set(drops.get(phase, ()))
                said: dict[int, bytes] = {}
                for number, message in messages.items():
                    answer = silos[number].consult(task, phase, {0: (number, message)})[0] if number not in gone else None
                    if isinstance(answer, str):
                        told[number] = answer
                        gone.add(number)
                    elif answer is not None:
                        said[number] = answer
                if isinstance(step, Train):
                    for number in said:
                        assert not silos[number].ready(task, [0], self.WEIGHTS)
                        values = UPDATES[number].copy()
                        silos[number].mask(0, values)
                        total += values
                    survivors = sorted(said)
                step = conduct.send(said)
        except TooFew:
            return told, None
        except StopIteration as end:
            end.value(total)
            return told, Outcome(total, total, survivors, told, {}, {})

    def silos(self) -> list[Members]:
        return [Members(lambda client: PROTOCOL.member, "run", 1, self.EXCHANGE) for _ in range(N)]

    def test_who_has_unmasked_takes_part_in_no_other_attempt_of_the_round(self) -> None:
        silos = self.silos()
        told, outcome = self.play(silos, RoundTask(3, 1.0), {})
        assert not told
        assert outcome is not None
        assert np.array_equal(outcome.total, UPDATES.sum(axis=0))
        for attempt in (1, 2, 7):
            told, outcome = self.play(silos, RoundTask(3, 1.0, attempt=attempt), {"train": [VICTIM]})
            assert outcome is None
            assert len(told) == N
            assert all("it has helped to read a sum of round 4 already" in reason for reason in told.values())
        for task in (RoundTask(3, 1.0), RoundTask(2, 1.0, attempt=9)):  # nor does a round come back
            told, outcome = self.play(silos, task, {})
            assert outcome is None
            assert all("is over" in reason for reason in told.values())

    def test_the_next_round_and_a_restarted_process_go_on(self) -> None:
        silos = self.silos()
        assert self.play(silos, RoundTask(3, 1.0), {})[1] is not None
        silos[2] = self.silos()[2]  # it remembers nothing
        told, outcome = self.play(silos, RoundTask(4, 1.0), {})
        assert not told
        assert outcome is not None

    @pytest.mark.parametrize("phase", ["keys", "shares", TRAIN, "consistency"])
    def test_an_attempt_that_failed_before_anything_was_revealed_is_begun_again(self, phase: str) -> None:
        silos = self.silos()
        told, outcome = self.play(silos, RoundTask(3, 1.0), {phase: [0, 1, 2, 3]})
        assert not told
        assert outcome is None
        told, outcome = self.play(silos, RoundTask(3, 1.0, attempt=1), {})
        assert not told
        assert outcome is not None
        assert np.array_equal(outcome.total, UPDATES.sum(axis=0))

    def test_an_attempt_that_failed_while_it_was_unmasked_is_given_up_by_those_who_answered(self) -> None:
        silos = self.silos()
        assert self.play(silos, RoundTask(3, 1.0), {"unmask": [0, 1, 2]})[1] is None
        told, outcome = self.play(silos, RoundTask(3, 1.0, attempt=1), {})
        assert sorted(told) == [3, 4, 5]
        assert outcome is None
        told, outcome = self.play(silos, RoundTask(4, 1.0), {})
        assert not told
        assert outcome is not None

    def test_a_member_of_an_earlier_attempt_counts_after_several(self) -> None:
        silos = self.silos()
        self.play(silos, RoundTask(3, 1.0), {"unmask": [0, 1, 2, 3, 4]})
        self.play(silos, RoundTask(3, 1.0, attempt=1), {})
        told, _ = self.play(silos, RoundTask(3, 1.0, attempt=2), {})
        assert VICTIM in told
