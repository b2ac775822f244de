"""Reputation: what a score says, who is muted and comes back, what outlives a run, and what it is refused with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsed import Rehearsed, config_of

from fedray.aggregation.each import Each, Rows, RowsAt
from fedray.aggregation.reputation import Reputation, agreement
from fedray.aggregation.rule import Memory, combined, make_rule
from fedray.choices import Choice
from fedray.configfile import build_config
from fedray.data.partition import dirichlet, iid
from fedray.data.records import Federation, Records, offsets_of
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal
from fedray.parameters import Vector
from fedray.planning.combinations import check_only, check_privacy
from fedray.rounds.remembered import begun_with, keep

Updates = npt.NDArray[np.float32]
SIZE = 200


def each_of(updates: Updates, clients: Any = None, root: Any = None) -> Each:
    rows = Rows(updates.shape[1])
    rows.add_many(updates, [1.0] * len(updates))
    return Each(updates.shape[1], root=root).joined(RowsAt.here([*(range(len(updates)) if clients is None else clients)], rows))


def honest(draws: np.random.Generator, count: int, towards: float = 1.0) -> Updates:
    """Updates that share a direction, and differ as much as they share."""
    return (towards + draws.standard_normal((count, SIZE))).astype(np.float32)


# -- evidence ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_agreement_is_the_cosine_with_the_others_sum(count: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    updates, weights = draws.standard_normal((count, 30)), draws.random(count) * (draws.random(count) < 0.8)
    found = agreement(updates @ updates.T, weights)
    for k in range(count):
        others = weights @ updates - weights[k] * updates[k]
        length = np.linalg.norm(others)
        expected = updates[k] @ others / np.linalg.norm(updates[k]) / length if length > 1e-9 else 0.0
        assert found[k] == pytest.approx(expected, abs=1e-6)


def test_copies_do_not_vouch_for_each_other_unless_everyone_is_one() -> None:
    draws = np.random.default_rng(0)
    updates = np.concatenate([honest(draws, 7), np.repeat(-honest(draws, 1, 0.0), 3, axis=0)]).astype(np.float64)
    products, weights = updates @ updates.T, np.ones(10)
    assert agreement(products, weights)[7:].max() < 0.2
    same = np.ones((5, SIZE))
    assert agreement(same @ same.T, np.ones(5)).tolist() == pytest.approx([1.0] * 5)


def test_nothing_is_said_where_there_is_nobody_to_agree_with() -> None:
    rule = Reputation()
    for updates in (honest(np.random.default_rng(0), 1), np.zeros((4, SIZE), dtype=np.float32)):
        vector, kept = combined(rule, each_of(updates), rule.begin(5, SIZE), SIZE)
        assert not rule.of_clients(kept)["muted"].any()
        np.testing.assert_allclose(vector, updates.mean(axis=0), atol=1e-6)


# -- scores over rounds ------------------------------------------------------------------------


def played(rule: Reputation, rounds: int, sent: Any, kept: Memory | None = None, clients: int = 10, seed: int = 0) -> tuple[Vector, Memory]:
    """Rounds in which ``sent`` changes what honest clients would send."""
    draws, kept = np.random.default_rng(seed), kept or rule.begin(clients, SIZE)
    vector = np.zeros(SIZE, dtype=np.float32)
    for _ in range(rounds):
        vector, kept = combined(rule, each_of(sent(honest(draws, clients))), kept, SIZE)
    return vector, kept


def opposite(some: int, times: float = 5.0) -> Any:
    def sent(updates: Updates) -> Updates:
        updates[:some] *= np.float32(-times)
        return updates

    return sent


@pytest.mark.parametrize("times", [0.01, 1.0, 5.0, 100.0])
def test_who_contradicts_is_muted_and_moves_nothing_any_more(times: float) -> None:
    rule = Reputation()
    _, kept = played(rule, 3, opposite(3, times))
    assert rule.of_clients(kept)["muted"].tolist() == [True] * 3 + [False] * 7
    updates = honest(np.random.default_rng(5), 10)
    with_them, _ = rule.combine(each_of(opposite(3, times)(updates.copy())), kept)
    opposed, _ = rule.combine(each_of(opposite(3, 2 * times)(updates.copy())), kept)
    np.testing.assert_allclose(with_them, opposed, rtol=0.35, atol=0.2)  # the median length is all that they have a part in
    assert with_them.mean() > 0.6


def test_a_muted_client_is_heard_again_when_it_agrees_for_a_while() -> None:
    rule = Reputation()
    _, kept = played(rule, 20, opposite(2))
    _, soon = played(rule, 3, lambda updates: updates, kept)
    assert rule.of_clients(soon)["muted"][:2].all()
    _, later = played(rule, 25, lambda updates: updates, kept)
    assert not rule.of_clients(later)["muted"].any()
    assert rule.of_clients(later)["weight"][:2].min() > 0.3


def test_a_good_name_does_not_last_through_an_attack() -> None:
    rule = Reputation()
    _, kept = played(rule, 30, lambda updates: updates)
    _, after = played(rule, 10, opposite(3), kept)
    assert rule.of_clients(after)["muted"].tolist() == [True] * 3 + [False] * 7


def test_only_who_took_part_is_judged() -> None:
    rule = Reputation()
    draws = np.random.default_rng(0)
    _, kept = combined(rule, each_of(honest(draws, 4), [1, 3, 5, 8]), rule.begin(10, SIZE), SIZE)
    assert np.flatnonzero(kept["turns"]).tolist() == [1, 3, 5, 8]
    assert np.flatnonzero(kept["scale"]).tolist() == [1, 3, 5, 8]
    assert rule.of_clients(kept)["score"][[0, 2, 4, 6, 7, 9]].tolist() == [1.0] * 6


def test_the_aggregate_is_no_longer_than_the_median_update() -> None:
    updates = honest(np.random.default_rng(0), 10)
    updates[0] *= 100
    vector, _ = Reputation().combine(each_of(updates), Reputation().begin(10, SIZE))
    assert np.linalg.norm(vector) <= np.median(np.linalg.norm(updates, axis=1)) * 1.0001


class Losses:
    """A root set to which the last updates are worth nothing."""

    def __init__(self, bad: int) -> None:
        self._bad = bad

    def update(self) -> Vector:
        raise NotImplementedError

    def losses(self, got: Each) -> npt.NDArray[np.float64]:
        return np.where(np.arange(got.count) >= got.count - self._bad, np.inf, 0.5)


def test_loss_on_a_root_set_is_evidence_against_updates_that_agree() -> None:
    rule, draws = Reputation(), np.random.default_rng(0)
    kept = with_root = rule.begin(10, SIZE)
    for _ in range(5):
        updates = honest(draws, 10)
        _, kept = rule.combine(each_of(updates), kept)
        _, with_root = rule.combine(each_of(updates, root=Losses(2)), with_root)
    assert rule.of_clients(kept)["score"][8:].min() > 0.7
    assert rule.of_clients(with_root)["score"][8:].max() < 0.3
    assert rule.of_clients(with_root)["score"][:8].min() > 0.7


def test_a_rounds_row_has_four_numbers_however_many_clients_there_are() -> None:
    rule = Reputation()
    kept = rule.begin(10_000, 3)
    assert rule.figures(kept) == {"muted": 0.0}
    kept["turns"][:] = 1
    kept["support"][:100], kept["scale"][:] = -5.0, 3.0
    found = rule.figures(kept)
    assert set(found) == {"muted", "score_p10", "score_median", "score_p90"}
    assert found["muted"] == 100


# -- in training: the small form of tests/published/test_reputation_mnist.py ---------------------------


def dealt(seed: int, clients: int, alike: bool) -> Federation:
    """scikit-learn's digits, dealt at random or by Dirichlet(0.5)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    draws = np.random.default_rng(seed)
    skewed = partial(dirichlet, alpha=0.5, min_records=20)
    parts = (iid if alike else skewed)(y, None, draws, clients=clients)
    rows = np.concatenate(parts)
    records = Records((x[rows] / 16).astype(np.float32), y[rows].astype(np.int64))
    return Federation([f"client-{k}" for k in range(clients)], records, offsets_of([len(p) for p in parts]), None, None, None, 10)


@pytest.mark.parametrize("attack", [{"kind": "sign_flip", "times": 5.0}, {"kind": "gaussian"}, {"kind": "label_flip"}])
@pytest.mark.parametrize("alike", [True, False])
def test_persistent_attackers_are_found_and_honest_clients_are_heard(attack: dict[str, Any], alike: bool) -> None:
    clients, found, muted = 20, 0, 0
    for seed in range(2):
        federation = dealt(seed, clients, alike)
        config = config_of({"kind": "fedavg"}, aggregation={"kind": "reputation"}, attack={**attack, "fraction": 0.2}, seed=seed)
        run = Rehearsed(config, federation)
        for _ in range(20):
            run.train([[*range(clients)]])
        malicious = np.isin(np.arange(clients), [*run.attackers.clients])
        now = run.rule.of_clients(run.memory)["muted"]
        found, muted = found + int(now[malicious].sum()), muted + int(now[~malicious].sum())
    assert found >= 0.95 * 8
    assert muted <= 0.05 * 32


# -- beyond the run ----------------------------------------------------------------------------


def config(file: Path | None = None, **more: Any) -> Any:
    base = {"name": "t", "rounds": 1, "data": {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 4}}}
    rule = {"kind": "reputation"} | ({} if file is None else {"remember": str(file)})
    return build_config({**base, "model": {"kind": "softmax"}, "training": {"batch_size": 10, "epochs": 1}, "aggregation": rule, **more})


NAMES = ["a", "b", "c", "d"]


def test_scores_outlive_a_run_for_the_same_federation_only(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "scores"
    mine = config(file)
    rule = make_rule(mine.aggregation)
    assert not begun_with(mine, rule, NAMES, 3)["turns"].any()
    memory = rule.begin(4, 3)
    memory["support"][:], memory["turns"][:] = [1.0, -2.0, 0.5, 0.0], 7
    keep(mine, rule, NAMES, memory)
    again = begun_with(config(file, rounds=9, training={"batch_size": 20, "epochs": 3}), rule, NAMES, 99)
    assert {name: value.tolist() for name, value in again.items()} == {name: value.tolist() for name, value in memory.items()}
    other_data = {"source": "sklearn:digits", "partition": {"kind": "iid", "clients": 5}}
    for others, names in ((config(file), ["a", "b", "c", "e"]), (config(file, seed=1), NAMES), (config(file, data=other_data), NAMES)):
        with pytest.raises(ConfigError, match="is about another federation"):
            begun_with(others, rule, names, 3)
    keep(mine.model_copy(update={"aggregation": Choice(kind="python:mine:Rule")}), rule, NAMES, {"support": np.zeros(4)})
    with pytest.raises(ConfigError, match="was written by aggregation.kind 'python:mine:Rule'"):
        begun_with(mine, rule, NAMES, 3)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FedrayError, match="is damaged"):
        begun_with(mine, rule, NAMES, 3)
    file.unlink()
    keep(config(), make_rule(config().aggregation), NAMES, memory)
    assert not file.exists()


@pytest.mark.parametrize(
    ("where", "said"), [("s3://b/k", "is no file"), ("/tmp/working_dir_files/x", "would be gone with the job's files")]
)
def test_scores_are_kept_where_they_last(where: str, said: str) -> None:
    rule = replace(Reputation(), remember=where)
    with pytest.raises(ConfigError, match=said):
        begun_with(config(), rule, NAMES, 3)


# -- what it goes with -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threshold": 1.0}, "aggregation.threshold"),
        ({"forgetting": 0.0}, "aggregation.forgetting"),
        ({"longest": 1.0}, "aggregation.longest"),
        ({"remember": ""}, "aggregation.remember"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_rule(Choice(kind="reputation", **arguments))


def test_mixed_updates_have_no_reputation() -> None:
    with pytest.raises(ConfigError, match="mixed updates are no client's"):
        make_rule(Choice(kind="nnm", rule={"kind": "reputation"}))


def test_a_rehearsed_attack_is_not_held_against_clients_in_later_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="take one of the two out"):
        check_only(config(tmp_path / "s", attack={"kind": "sign_flip", "fraction": 0.5}))


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"privacy": {"regime": "client", "noise_multiplier": 1.0, "delta": 1e-3}}, "privacy.incompatible.client.aggregation"),
        (
            {"privacy": {"regime": "distributed", "noise_multiplier": 1.0, "delta": 1e-3}, "cohort": {"min_clients": 3}},
            "privacy.incompatible.distributed.aggregation",
        ),
        ({"secure": {"kind": "secagg"}}, "privacy.incompatible.secure.aggregation"),
    ],
)
def test_it_is_refused_where_single_updates_are_not_to_be_judged(more: dict[str, Any], code: str) -> None:
    with pytest.raises(PrivacyRefusal, match=r"use mean, or (privacy\.regime=local|secure\.kind=none)") as caught:
        check_privacy(config(**more))
    assert caught.value.code == code


def test_under_privacy_of_each_update_it_is_processing_of_what_is_released() -> None:
    training = {"steps": 2, "sampling_rate": 0.1, "expected_batch": 30.0}
    private = {"regime": "record", "noise_multiplier": 1.0, "delta": 1e-5}
    local = {"regime": "local", "noise_multiplier": 1.0, "delta": 1e-3}
    for more in ({"privacy": private, "training": training}, {"privacy": local, "algorithm": {"kind": "fedavg", "weights": "uniform"}}):
        assert any("judges updates by how they differ" in said for said in check_privacy(config(**more)))
