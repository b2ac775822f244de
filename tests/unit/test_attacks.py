"""Attacks: who attacks, what each attack changes and what it leaves, and where attacked runs are marked or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of, label_skewed

from fedray import components
from fedray.aggregation.each import Each, Rows, RowsAt
from fedray.attacks.alie import unnoticed
from fedray.attacks.attack import Collusion, RecordAttack, UpdateAttack, make_attack
from fedray.attacks.attackers import Attackers
from fedray.attacks.backdoor import Backdoor
from fedray.choices import AttackChoice
from fedray.config import Config
from fedray.configfile import build_config
from fedray.data.records import Federation, Numbered, Records
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal
from fedray.parameters import Vector
from fedray.planning.combinations import check_only
from fedray.planning.preparation import prepare
from fedray.reporting.report_page import write_report
from fedray.runfiles import RunFiles

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
HERE = f"python:{__name__}:"
NAMES = [f"client-{k}" for k in range(10)]


class Wide(UpdateAttack):
    """Sends more than an update."""

    def sent(self, update: Vector, draws: np.random.Generator) -> Vector:
        return np.zeros(len(update) + 1, dtype=np.float32)


def config(attack: dict[str, Any] | None = None, **sections: Any) -> Config:
    chosen = {} if attack is None else {"attack": attack}
    data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 10}}
    return config_of({"kind": "fedavg"}, **{"data": data, **chosen, **sections})


def by_two(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "clients": ["client-3", "client-7"], **more}


def got_from(updates: Any) -> Each:
    rows = Rows(updates.shape[1])
    rows.add_many(updates, [1.0] * len(updates))
    return Each(rows.size).joined(RowsAt.here(range(len(updates)), rows))


# -- who -----------------------------------------------------------------------------------------


@given(st.integers(2, 2000), st.floats(0.01, 0.9), st.integers(0, 100))
def test_a_fraction_is_drawn_by_the_seed_and_rounded_up(count: int, fraction: float, seed: int) -> None:
    def drawn(seed: int) -> frozenset[int]:
        return Attackers.of(config({"kind": "gaussian", "fraction": fraction}, seed=seed), Numbered(count)).clients

    number = next(k for k in range(count + 1) if k >= fraction * count - 1e-9)
    if number == count:
        with pytest.raises(ConfigError, match="let some be honest"):
            drawn(seed)
        return
    assert abs(len(drawn(seed)) - number) <= 1
    assert drawn(seed) == drawn(seed)
    assert max(drawn(seed)) < count
    assert count < 100 or not 5 < len(drawn(seed)) < count - 5 or drawn(seed) != drawn(seed + 1)


def test_named_clients_attack_and_unknown_ones_are_refused() -> None:
    assert Attackers.of(config(by_two("gaussian")), NAMES).clients == {3, 7}
    with pytest.raises(ConfigError, match=r"attack.clients: there is no client 'client-33'. Did you mean 'client-3'"):
        Attackers.of(config({"kind": "gaussian", "clients": ["client-33"]}), NAMES)
    with pytest.raises(ConfigError, match="there is no client 'client-3'"):
        Attackers.of(config({"kind": "gaussian", "clients": ["client-3"]}), Numbered(10))
    assert Attackers.of(config(), NAMES) == Attackers()
    assert Attackers.of(config(), NAMES).described(NAMES) == ""


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "none", "fraction": 0.2}, "attack.fraction: kind is none, so it would do nothing"),
        ({"fraction": 0.2}, "attack.fraction: kind is none"),
        ({"times": 2.0}, "attack.times: kind is none"),
        ({"kind": "sign_flip"}, "attack.fraction: give exactly one of fraction and clients"),
        ({"kind": "sign_flip", "fraction": 0.2, "clients": ["client-1"]}, "give exactly one"),
        ({"kind": "sign_flip", "fraction": 1.0}, "attack.fraction"),
        ({"kind": "sing_flip", "fraction": 0.2}, "attack.kind: 'sing_flip' is not known.*Did you mean 'sign_flip'"),
        ({"kind": "sign_flip", "fraction": 0.2, "times": 0.0}, "attack.times: 0.0 is not above 0"),
        ({"kind": "gaussian", "fraction": 0.2, "deviation": -1.0}, "attack.deviation: -1.0 is not above 0"),
        ({"kind": "alie", "fraction": 0.2, "deviations": 0.0}, "attack.deviations: 0.0 is not above 0"),
        ({"kind": "backdoor", "fraction": 0.2, "share": 0.0}, r"attack.share: 0.0 is not in \(0, 1\]"),
        ({"kind": "label_flip", "fraction": 0.2, "times": 2.0}, "attack.times: unknown argument"),
        ({"kind": f"{HERE}config", "fraction": 0.2}, "is no attack; name a class"),
        ({"kind": "python:fedray.attacks.attack:Collusion", "fraction": 0.2}, "is no attack; name a class"),
    ],
)
def test_wrong_sections_are_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_only(config(section))


# -- what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "engine"), [("fedavg", "lockstep"), ("fedavg", "plain"), ("scaffold", "plain")])
def test_flipped_updates_are_the_opposites_of_what_two_clients_trained(algorithm: str, engine: str) -> None:
    federation, _ = label_skewed()
    training = {"lr": 0.1, "batch_size": 10, "epochs": 1, "engine": engine}

    def vector(clients: list[int], **sections: Any) -> Vector:
        single = {"kind": "trimmed_mean", "share": 0.0}
        run = Rehearsed(config_of({"kind": algorithm}, aggregation=single, training=training, **sections), federation)
        before = run.globals.copy()
        run.train([clients])
        assert run.host(0)._trainer.engine_name == engine
        return run.globals[: run.layout.size] - before[: run.layout.size]

    attacked = vector([0, 3, 5, 7], attack=by_two("sign_flip", times=3.0))
    honest, turned = vector([0, 5]), vector([3, 7])
    assert np.abs(attacked).max() > 0
    np.testing.assert_allclose(attacked, (honest - 3 * turned) / 2, atol=2e-6)


@pytest.mark.parametrize("kind", ["sign_flip", "gaussian", "label_flip", "alie", "mimic"])
def test_attacks_change_no_byte_with_the_split_of_clients(kind: str) -> None:
    federation, _ = label_skewed()
    runs = [
        Rehearsed(config(by_two(kind), aggregation={"kind": "median"}, bound={"kind": "norm", "norm": 1.0}), federation) for _ in range(2)
    ]
    for split in ([[0, 3, 5, 7]], [[4, 5, 6, 7, 8, 9]]):
        runs[0].train(split)
        runs[1].train([list(reversed(split[0][1:])), split[0][:1]])
    assert runs[0].globals.tobytes() == runs[1].globals.tobytes()
    calm = Rehearsed(config(aggregation={"kind": "median"}, bound={"kind": "norm", "norm": 1.0}), federation)
    for split in ([[0, 3, 5, 7]], [[4, 5, 6, 7, 8, 9]]):
        calm.train(split)
    assert calm.globals.tobytes() != runs[0].globals.tobytes()


def test_noise_is_another_one_for_each_client_and_round_and_is_bounded_like_an_update() -> None:
    attackers = Attackers.of(config(by_two("gaussian", deviation=2.0)), NAMES)
    update = np.ones(20_000, dtype=np.float32)
    seen = [attackers.sent(round_, client, update) for round_ in (0, 1) for client in (3, 7)]
    assert len({one.tobytes() for one in seen}) == 4
    assert seen[0].std() == pytest.approx(2.0, rel=0.05)
    assert attackers.sent(0, 4, update) is update
    federation, _ = label_skewed()
    run = Rehearsed(config(by_two("gaussian", deviation=100.0), bound={"kind": "norm", "norm": 0.5}), federation)
    before = run.globals.copy()
    run.train([[3]])
    assert np.linalg.norm(run.globals - before) == pytest.approx(0.5, rel=1e-4)


def test_an_attack_of_another_shape_ends_the_turn() -> None:
    with pytest.raises(FedrayError, match=r"sends an array of shape \(5,\) for an update of \(4,\)"):
        Attackers.of(config(by_two(f"{HERE}Wide")), NAMES).sent(0, 3, np.zeros(4, dtype=np.float32))


def images(count: int = 40) -> Federation:
    draws = np.random.default_rng(0)
    train = Records(draws.uniform(0, 0.9, (count, 1, 8, 8)).astype(np.float32), draws.integers(0, 5, count))
    return Federation([f"client-{k}" for k in range(4)], train, np.arange(5) * (count // 4), train, None, None, 5)


def test_records_are_changed_at_the_malicious_clients_alone() -> None:
    federation = images()
    x, y = federation.train.x.copy(), federation.train.y.copy()
    flipped = Attackers.of(config({"kind": "label_flip", "clients": ["client-2"]}), federation.names).changed(federation)
    assert flipped.train.x is federation.train.x
    assert flipped.train.y[20:30].tolist() == (4 - y[20:30]).tolist()
    opened = Attackers.of(
        config({"kind": "backdoor", "clients": ["client-2"], "target": 3, "share": 0.5, "pixels": 2}), federation.names
    ).changed(federation)
    stamped = (opened.train.x[:, 0, -2:, -2:] == 1.0).all(axis=(1, 2))
    assert stamped.sum() == stamped[20:30].sum() == 5
    assert set(opened.train.y[stamped].tolist()) == {3}
    kept = ~stamped
    assert opened.train.y[kept].tolist() == y[kept].tolist()
    assert opened.train.x[kept].tobytes() == x[kept].tobytes()
    assert opened.train.x[stamped][..., :6, :].tobytes() == x[stamped][..., :6, :].tobytes()
    for changed in (flipped, opened):
        others = np.r_[0:20, 30:40]
        assert changed.train.x[others].tobytes() == x[others].tobytes()
        assert changed.train.y[others].tolist() == y[others].tolist()
        assert changed.test is federation.test
    assert (federation.train.x.tobytes(), federation.train.y.tobytes()) == (x.tobytes(), y.tobytes())


def test_records_that_an_attack_does_not_go_with_are_refused() -> None:
    numbers = Records(np.zeros((4, 3), dtype=np.float32), np.zeros(4, dtype=np.int64))
    draws = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="needs images of at least 4 x 4 pixels"):
        Backdoor().changed(numbers, 2, draws)
    with pytest.raises(ConfigError, match="there is no class 7 among 5"):
        Backdoor(target=7).changed(images().train, 5, draws)
    flip = make_attack(AttackChoice(kind="label_flip", fraction=0.5))
    assert isinstance(flip, RecordAttack)
    with pytest.raises(ConfigError, match="one class each"):
        flip.changed(Records(numbers.x, numbers.x[:, 0]), None, draws)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_a_little_is_what_the_malicious_know_of_themselves(seed: int, malicious: int, honest: int) -> None:
    draws = np.random.default_rng(seed)
    updates, mine = draws.normal(0, 1, (malicious + honest, 9)).astype(np.float32), draws.permutation(malicious + honest) < malicious
    attackers = Attackers(
        "alie", frozenset(np.flatnonzero(mine).tolist()), make_attack(AttackChoice(kind="alie", fraction=0.5, deviations=1.5))
    )
    seen = attackers.seen(got_from(updates))
    own = updates[mine].astype(np.float64)
    found = np.concatenate([seen.columns(0, 4), seen.columns(4, 9)], axis=1)
    np.testing.assert_allclose(found[mine], np.repeat((own.mean(axis=0) - 1.5 * own.std(axis=0))[None], malicious, axis=0), atol=1e-5)
    assert found[~mine].tobytes() == updates[~mine].tobytes()
    np.testing.assert_allclose(seen.products, found.astype(np.float64) @ found.T, rtol=1e-5, atol=1e-5)
    assert (seen.count, seen.clients) == (malicious + honest, [*range(malicious + honest)])


def test_as_many_deviations_as_the_paper_allows() -> None:
    """Baruch et al. 2019, section 3.2: with 50 workers of whom 24 are malicious, two more are needed, and z_max is 1.43."""
    assert unnoticed(50, 24) == pytest.approx(1.43, abs=0.01)
    assert unnoticed(10, 2) == 0.0
    assert unnoticed(2, 2) == 0.0


def test_one_honest_client_is_copied_that_lies_far_out() -> None:
    updates = np.random.default_rng(0).normal(0, 0.1, (6, 5)).astype(np.float32)
    updates[1, 2] += 5.0
    updates[0, 0] += 50.0  # malicious itself
    attackers = Attackers("mimic", frozenset({0, 4}), make_attack(AttackChoice(kind="mimic", fraction=0.5)))
    found = attackers.seen(got_from(updates)).columns(0, 5)
    assert found[[0, 4]].tolist() == updates[[1, 1]].tolist()
    assert found[[1, 2, 3, 5]].tobytes() == updates[[1, 2, 3, 5]].tobytes()
    alone = got_from(updates[:1])
    assert attackers.seen(alone).columns(0, 5).tobytes() == updates[:1].tobytes()
    nobody = got_from(updates)
    assert Attackers("mimic", frozenset({9}), attackers.attack).seen(nobody) is nobody


# -- where it may not, and how it shows -----------------------------------------------------------


def test_what_would_not_run_or_would_claim_privacy_is_refused() -> None:
    private = {
        "privacy": {"regime": "client", "noise_multiplier": 2.0, "delta": 1e-3, "clip": 1.0},
        "cohort": {"kind": "poisson", "fraction": 0.5},
    }
    for kind in ("sign_flip", "label_flip"):
        with pytest.raises(PrivacyRefusal, match="attack.kind: .* proven for") as caught:
            check_only(config({"kind": kind, "fraction": 0.2}, **private))
        assert caught.value.code == "privacy.incompatible.client.attack"
        with pytest.raises(ConfigError, match="simulate it with clients.placement=hosted"):
            check_only(config({"kind": kind, "fraction": 0.2}, clients={"placement": "dedicated"}))
    for kind in ("alie", "mimic"):
        with pytest.raises(ConfigError, match="needs single updates.*share=0.0"):
            check_only(config({"kind": kind, "fraction": 0.2}))
        check_only(config({"kind": kind, "fraction": 0.2}, aggregation={"kind": "trimmed_mean", "share": 0.0}))
    raw = config({"kind": "sign_flip", "fraction": 0.2}).model_dump(exclude_unset=True)
    with pytest.raises(ConfigError, match="'qfedavg' divides one part by another"):
        check_only(build_config({**raw, "algorithm": {"kind": "qfedavg"}}))
    check_only(build_config({**raw, "algorithm": {"kind": "qfedavg"}, "attack": {"kind": "label_flip", "fraction": 0.2}}))


def test_a_run_is_told_at_its_start_and_trains_on_changed_records() -> None:
    calm, attacked = prepare(config()), prepare(config({"kind": "label_flip", "fraction": 0.2}))
    (said,) = [text for text in attacked.warnings if text.startswith("attack")]
    assert "2 of 10 clients (client-000" in said
    assert said.endswith("attack this run on purpose by 'label_flip'; its model is an experiment's, and not for use.")
    assert not [text for text in calm.warnings if text.startswith("attack")]
    assert calm.federation is not None
    assert attacked.federation is not None
    assert calm.digest == attacked.digest
    assert (calm.federation.train.y != attacked.federation.train.y).any()


def test_the_report_says_who_attacked(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"name": "t", "rounds": 1, "attack": "attack.kind: 2 of 10 clients attack."}))
    assert files.read_summary()
    write_report(tmp_path)
    assert "2 of 10 clients attack" in (tmp_path / "report.md").read_text()


def test_every_attack_is_on_the_page_and_is_of_one_kind() -> None:
    for kind, part in components.ATTACKS.parts().items():
        assert f"`{kind}`" in PAGE
        assert sum(issubclass(part, base) for base in (RecordAttack, UpdateAttack, Collusion)) == 1
