"""Plans for whole clients, what they charge, what leaves a client, and what the driver releases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedray.config import Config
from fedray.configfile import build_config
from fedray.errors import ClaimVoid, ConfigError, PrivacyRefusal
from fedray.planning.combinations import check_privacy
from fedray.privacy.accounting.accountant import bound
from fedray.privacy.accounting.events import DistributedGaussian, Gaussian, Poisson, PureDp, Skellam, Tree, TruncatedPoisson, Wor, rate
from fedray.privacy.clientplan import ClientPlan, plan_clients
from fedray.privacy.csprng import InsecureSeeded
from fedray.privacy.mechanisms.central import Clipped
from fedray.privacy.receipt import check_receipt
from fedray.privacy.release import Release
from fedray.updates.stage import At

GRID = 30


def config(privacy: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "t",
        "rounds": 12,
        "data": {"source": "sklearn:digits"},
        "model": {"kind": "softmax"},
        "training": {"batch_size": 10, "epochs": 1},
        "algorithm": {"kind": "fedavg", "weights": "uniform"},
        "cohort": {"kind": "all"},
        "privacy": {"regime": "client", "noise_multiplier": 2.0, "delta": 1e-4, **(privacy or {})},
    }
    return build_config({**raw, **sections})


def plan(privacy: Mapping[str, Any] | None = None, clients: int = 100, dimension: int = 50, **sections: Any) -> ClientPlan:
    return plan_clients(config(privacy, **sections), clients, dimension, GRID)


POISSON = {"kind": "poisson", "fraction": 0.1}


class TestEvents:
    def test_each_cohort_has_its_own(self) -> None:
        assert plan().event() == Gaussian(2.0)
        assert plan(cohort=POISSON).event() == Poisson(rate(0.1), Gaussian(2.0))
        assert plan(cohort={**POISSON, "cap": 25}).event() == TruncatedPoisson(100, rate(0.1), 25, 2.0)
        fixed = plan(cohort={"kind": "fixed", "size": 10})
        assert (fixed.event(), fixed.adjacency) == (Wor(100, 10, Gaussian(2.0)), "replace_one")
        cyclic = plan(cohort={"kind": "cyclic", "size": 10})
        assert (cyclic.event(), cyclic.charging.whom, cyclic.participations) == (Gaussian(2.0), "participants", 2)

    def test_correlated_noise_is_charged_once_for_its_rounds(self) -> None:
        cyclic = {"kind": "cyclic", "size": 5}
        tree = plan({"mechanism": {"kind": "tree", "restart_every": 5}}, cohort=cyclic)
        assert (tree.event(), tree.participations, tree.charging.separation) == (Tree(2.0, 5), 3, 5)
        banded = plan({"mechanism": {"kind": "banded", "band": 4}}, cohort=cyclic)
        assert (banded.event(), banded.participations, banded.charging.most) == (Gaussian(2.0 / math.sqrt(3)), 1, 3)
        once = plan({"mechanism": {"kind": "banded", "band": 4}, "max_participations": 1}, cohort=cyclic)
        assert once.event() == Gaussian(2.0)

    def test_local_and_distributed(self) -> None:
        local = plan({"regime": "local"})
        assert (local.event(), local.adjacency, local.charging.whom) == (Gaussian(2.0), "replace_one", "participants")
        assert plan({"regime": "local", "mechanism": {"kind": "privunit"}, "noise_multiplier": 0.25}).event() == PureDp(4.0)
        ddg = plan({"regime": "distributed"}, cohort={**POISSON, "min_clients": 5})
        event = ddg.event()
        assert isinstance(event, DistributedGaussian)
        assert event.clients == 5
        assert bound({event: 1}, 1e-4) == pytest.approx(bound({Gaussian(2.0): 1}, 1e-4), rel=0.2)  # RDP beside PLD, at a fine grid
        observers = ddg.observers_epsilon(12)
        assert observers is not None
        assert observers <= bound({event: 12}, 1e-4)  # below five clients a round is seen to fail, which nothing amplifies here
        skellam = plan({"regime": "distributed", "mechanism": {"kind": "skellam"}}, cohort={**POISSON, "min_clients": 5})
        assert isinstance(skellam.event(), Skellam)

    def test_a_target_finds_the_noise_for_all_charges(self) -> None:
        found = plan({"noise_multiplier": None, "target_epsilon": 3.0}, cohort=POISSON)
        assert 2.99 < found.planned_epsilon <= 3.0
        assert found.budget == 3.0
        assert bound({found.event(): found.participations + 1}, 1e-4) > 3.0

    def test_groups_are_charged_as_the_most_frequent(self) -> None:
        found = plan_clients(config(cohort=POISSON), 100, 50, GRID, largest_rate=0.5)
        assert found.facts.rate == rate(0.05)

    def test_adaptive_clip_splits_the_charged_noise(self) -> None:
        found = plan({"adaptive_clip": {}, "noise_multiplier": 1.0}, cohort={"kind": "poisson", "fraction": 0.5})
        assert found.adaptive is not None
        assert found.adaptive.bit_noise == 2.5
        assert found.adaptive.noise_multiplier**-2 + (2 * 2.5) ** -2 == pytest.approx(1.0)
        assert found.event() == Poisson(rate(0.5), Gaussian(1.0))


REFUSED = [
    ({}, {"algorithm": {"kind": "fedavg"}}, "privacy.incompatible.client.sample_weights"),
    ({}, {"aggregation": {"kind": "median"}}, "privacy.incompatible.client.aggregation"),
    ({}, {"evaluation": {"federated": True}}, "privacy.incompatible.client.federated_evaluation"),
    (
        {},
        {"tracking": {"system_metrics": True}, "cohort": {"kind": "poisson", "fraction": 0.1}},
        "privacy.incompatible.client.system_metrics",
    ),
    ({"regime": "distributed"}, {}, "privacy.incompatible.distributed.min_clients"),
]


class TestObservers:
    """Those who see the models and which rounds failed, but not the cohorts."""

    @staticmethod
    def failing(epsilon: float, clients: int, rate_: float, least: int, z: float) -> float:
        """Delta at ``epsilon`` of one round that is seen to fail below ``least`` clients, by quadrature: the client's coin is fair or decides."""
        x = np.linspace(-60.0, 60.0, 600_001)
        zero, one = (np.exp(-((x - m) ** 2) / (2 * z * z)) / math.sqrt(2 * math.pi) / z for m in (0.0, 1.0))
        others = stats.binom(clients - 1, rate_)
        enough, decides = others.sf(least - 1), others.pmf(least - 1) * rate_
        with_, without = enough * ((1 - rate_) * zero + rate_ * one) + decides * one, (enough + decides) * zero
        return float(max(np.maximum(a - math.exp(epsilon) * b, 0).sum() for a, b in ((with_, without), (without, with_))) * (x[1] - x[0]))

    def observed(self, least: int, delta: float = 1e-3) -> tuple[float, float, float]:
        """The figure after one round, those of secret samples and of known ones."""
        cohort = {"kind": "poisson", "fraction": 0.3, "min_clients": least}
        found = plan({"regime": "distributed", "delta": delta}, cohort=cohort, clients=30)
        event = found.event()
        figure = found.observers_epsilon(1)
        assert figure is not None
        return figure, bound({Poisson(rate(0.3), event): 1}, delta), bound({event: 1}, delta)

    def test_a_round_that_fails_visibly_is_counted(self) -> None:
        """With two clients at least, one coin decides with a chance of 1.2e-4: that is part of delta, and less amplification is left."""
        figure, secret, known = self.observed(2)
        assert secret < figure < known
        assert self.failing(figure, 30, 0.3, 2, 2.0) <= 1e-3

    def test_where_a_coin_decides_often_nothing_is_amplified(self) -> None:
        figure, _, known = self.observed(6)
        assert figure == known
        assert self.failing(figure, 30, 0.3, 6, 2.0) <= 1e-3

    def test_with_many_clients_it_costs_nothing_to_speak_of(self) -> None:
        cohort = {"kind": "poisson", "fraction": 0.3, "min_clients": 10}
        found = plan({"regime": "distributed", "delta": 1e-4}, cohort=cohort, clients=500)
        figure = found.observers_epsilon(12)
        secret = bound({Poisson(rate(0.3), found.event()): 12}, 1e-4)
        assert figure is not None
        assert secret <= figure < 1.001 * secret < bound({found.event(): 12}, 1e-4)

    def test_groups_of_different_rates_are_given_no_figure(self) -> None:
        given = config({"regime": "distributed"}, cohort={**POISSON, "min_clients": 5})
        assert plan_clients(given, 100, 50, GRID, 1.0, one_rate=False).observers_rate is None


class TestParticipants:
    """The next model must not depend on how many clients took part where that is secret."""

    @pytest.mark.parametrize("updates", [0, 3, 40])
    def test_where_the_driver_adds_noise_the_expected_number_is_used(self, updates: int) -> None:
        assert Release(plan(cohort=POISSON)).participants(updates) == 10.0

    def test_where_clients_add_all_noise_those_who_came_are_counted(self) -> None:
        local = plan({"regime": "local"})
        assert Release(local).participants(3) == 3.0


class TestRefusals:
    @pytest.mark.parametrize(("privacy", "sections", "code"), REFUSED)
    def test_what_voids_the_guarantee(self, privacy: dict[str, Any], sections: dict[str, Any], code: str) -> None:
        with pytest.raises(PrivacyRefusal) as caught:
            check_privacy(config(privacy, **sections))
        assert caught.value.code == code

    def test_too_large_a_delta(self) -> None:
        with pytest.raises(PrivacyRefusal, match=r"set privacy.delta=0.001 or less"):
            plan({"delta": 0.002})

    @pytest.mark.parametrize(
        ("privacy", "sections", "words"),
        [
            ({"mechanism": {"kind": "ddg"}}, {}, "is for privacy.regime distributed, not client; use banded or gaussian or tree"),
            ({"mechanism": {"kind": "tree", "restart_every": 13}}, {}, "restart_every: should be between 1 and the 12 rounds"),
            ({"max_participations": 3}, {"cohort": POISSON}, "max_participations: every round is charged to every client"),
            ({"target_epsilon": 3.0}, {}, "both of them are given"),
            ({"delta": None}, {}, "privacy.delta: is needed"),
            (
                {"mechanism": {"kind": "tree"}, "adaptive_clip": {}},
                {"cohort": {"kind": "cyclic", "size": 8}},
                "needs one clip norm for all rounds",
            ),
            ({"mechanism": {"kind": "tree"}}, {}, r"cohorts of 100 would run out of clients; take cohorts of at most 8"),
            ({"mechanism": {"kind": "banded", "band": 4}}, {"cohort": {"kind": "cyclic", "size": 26}}, "cohorts of at most 25"),
            ({"adaptive_clip": {"bit_noise": 0.5}}, {}, "bit_noise|noise"),
        ],
    )
    def test_what_does_not_go_together(self, privacy: dict[str, Any], sections: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            plan(privacy, **sections)

    def test_joint_use_needs_both_lines(self) -> None:
        with pytest.raises(ConfigError, match="joint: goes with two regimes"):
            config({"regime": ["record", "client"]})
        with pytest.raises(ConfigError, match=r"a list is \[record, client\]"):
            config({"regime": ["client", "record"], "joint": {}})


WILD = [
    np.full(50, 3e38),
    np.full(50, np.nan),
    np.full(50, np.inf),
    np.eye(50)[0] * 1e30,
    np.full(50, 1e-40),
    np.full(50, 7.0),
    np.zeros(50),
]


@given(
    st.one_of(st.sampled_from(WILD), st.lists(st.floats(width=32), min_size=50, max_size=50).map(np.array)),
    st.floats(1e-3, 1e3),
    st.floats(0.0, 1.0),
)
@settings(max_examples=200)
def test_no_update_leaves_above_the_clip_norm(update: npt.NDArray[np.float64], clip: float, weight: float) -> None:
    with np.errstate(over="ignore"):
        update32 = update.astype(np.float32)
    stage = Clipped(clip, slack=clip * 1e-9, bit=True)
    sent = stage.out(update32, At(0, 0, 0, InsecureSeeded(1, 0, 0), weight)).values.astype(np.float64)
    assert np.linalg.norm(sent[:-1]) <= clip
    assert sent[-1] in (-0.5, 0.5)
    if not np.isfinite(update32).all():
        assert not sent[:-1].any()


class TestRelease:
    def test_nothing_is_released_without_a_charge(self) -> None:
        release = Release(plan(), insecure_seed=1)
        with pytest.raises(ClaimVoid, match="no charge in the ledger covers it"):
            release.mean(np.zeros(50, dtype=np.int64), GRID, 0)
        release.begin(0)
        assert release.mean(np.zeros(50, dtype=np.int64), GRID, 0).shape == (50,)
        with pytest.raises(ClaimVoid):
            release.mean(np.zeros(50, dtype=np.int64), GRID, 1)

    def test_the_mean_is_the_sum_over_a_constant(self) -> None:
        given_plan = plan({"noise_multiplier": 1e-6, "denominator": 20.0})
        release = Release(given_plan, insecure_seed=1)
        release.begin(0)
        total = np.full(50, 5 << GRID, dtype=np.int64)
        np.testing.assert_allclose(release.mean(total, GRID, 0), 0.25, atol=1e-6)

    def test_separation_and_count_are_enforced(self) -> None:
        release = Release(
            plan({"mechanism": {"kind": "banded", "band": 3}, "max_participations": 2}, cohort={"kind": "cyclic", "size": 9}),
            insecure_seed=1,
        )
        assert release.eligible(0) is None
        release.begin(0)
        release.taken(0, [0, 1])
        for round_, expected in ((1, False), (2, False), (3, True)):
            mask = release.eligible(round_)
            assert mask is not None
            assert (mask[0], mask[5]) == (expected, True)
        with pytest.raises(ClaimVoid, match="more often than its charge covers"):
            release.taken(2, [1])
        release.taken(3, [0])
        mask = release.eligible(9)
        assert mask is not None
        assert (mask[0], mask[1]) == (False, True)  # twice is all that the event covers

    def test_adaptive_clip_finds_the_quantile(self) -> None:
        release = Release(plan({"adaptive_clip": {"bit_noise": 1.1}, "noise_multiplier": 1.0, "clip": 0.01}, rounds=400), insecure_seed=1)
        norms = np.linspace(0.5, 1.5, 100)
        for round_ in range(200):
            release.begin(round_)
            total = np.zeros(51, dtype=np.int64)
            total[-1] = round(float(((norms <= release.clip) - 0.5).sum()) * 2**GRID)
            release.mean(total, GRID, round_)
        assert release.clip == pytest.approx(1.0, rel=0.1)
        other = Release(release.plan)
        other.load(release.state())
        assert other.clip == release.clip


class TestReceipts:
    HONEST: ClassVar[dict[str, Any]] = {
        "reservation": "a" * 64,
        "plan": "b" * 64,
        "steps": 5,
        "sampling_rate": [1, 4],
        "noise_multiplier": 1.0,
        "clip": 1.0,
        "engine": "book",
    }

    def test_one_that_matches_is_accepted_whatever_the_engine(self) -> None:
        check_receipt("silo", self.HONEST, {**self.HONEST, "engine": None})

    @pytest.mark.parametrize("key", list(HONEST))
    def test_any_difference_is_found(self, key: str) -> None:
        with pytest.raises(ClaimVoid, match=f"silo: its receipt says {key}"):
            check_receipt("silo", {**self.HONEST, key: "other"}, self.HONEST)
        with pytest.raises(ClaimVoid, match=f"its receipt says {key} None"):
            check_receipt("silo", {k: v for k, v in self.HONEST.items() if k != key}, self.HONEST)

    def test_none_is_none(self) -> None:
        with pytest.raises(ClaimVoid, match="without a receipt"):
            check_receipt("silo", None, self.HONEST)
