"""Epsilon against figures computed beforehand by Opacus 1.6.0 and dp-accounting 0.6.0, and against each other; test_privacy_vectors.py has more.

Tolerances: RDP relative 1e-6, PLD absolute 1e-4. Each row lies in the bracket of Opacus' PRV accountant.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import pytest

from fedray.privacy.accounting import accountant
from fedray.privacy.accounting.accountant import bound, calibrate, epsilon, flatten
from fedray.privacy.accounting.events import Composed, Event, Gaussian, Poisson, SelfComposed, Tree, TruncatedPoisson, Wor


class Vector(NamedTuple):
    """One history: segments of (q numerator, q denominator, noise multiplier, steps), delta, and its epsilons."""

    name: str
    segments: tuple[tuple[int, int, float, int], ...]
    delta: float
    opacus_rdp: float
    rdp: float
    pld: float
    pld_fine: float
    prv_lower: float
    prv_upper: float


VECTORS = [
    Vector(
        "abadi2016_E100",
        ((1, 100, 4.0, 10000),),
        1e-05,
        1.0354900660362476,
        1.0354900660362436,
        0.9600452104972911,
        0.9469993068930963,
        0.9458034804532643,
        0.947930308950616,
    ),
    Vector(
        "abadi2016_E400",
        ((1, 100, 4.0, 40000),),
        1e-05,
        2.2097355966541588,
        2.2097355966543573,
        2.0620761217910353,
        2.0333569349457634,
        2.031943063287434,
        2.034187635436273,
    ),
    Vector(
        "opacus_mnist_sigma1.3",
        ((1, 250, 1.3, 3750),),
        1e-05,
        0.9220489427696699,
        0.9220489427696636,
        0.838881643160629,
        0.8335891184328208,
        0.8324768948429796,
        0.8345942885307671,
    ),
    Vector(
        "opacus_mnist_sigma1.1",
        ((1, 250, 1.1, 15000),),
        1e-05,
        2.502870926647115,
        2.5028709296537146,
        2.3051964262041986,
        2.2954679391351767,
        2.294230807836433,
        2.29650975315722,
    ),
    Vector(
        "opacus_mnist_sigma0.7",
        ((1, 250, 0.7, 11250),),
        1e-05,
        6.092535247105583,
        6.093728888449009,
        5.434855884500631,
        5.431222694900288,
        5.4298454539470535,
        5.432527502751661,
    ),
    Vector(
        "tfp_tutorial_1.12",
        ((256, 60000, 1.12, 14062),),
        1e-05,
        2.5185897819186374,
        2.5185897836275464,
        2.3192433901873586,
        2.3101853420001697,
        2.3089540139347657,
        2.3112343830857114,
    ),
    Vector(
        "tfp_tutorial_0.6",
        ((256, 60000, 0.6, 7031),),
        1e-05,
        8.769489106868171,
        8.776576174145774,
        7.691568529075682,
        7.69002705144793,
        7.688491040715271,
        7.691529425401409,
    ),
    Vector(
        "tfp_tutorial_1.2",
        ((256, 60000, 1.2, 2343),),
        1e-05,
        0.9316224823355241,
        0.9316224823355022,
        0.795699195947153,
        0.7922886725856394,
        0.7911970792612611,
        0.7933117653265023,
    ),
    Vector(
        "de2022_cifar10_eps1_n50000",
        ((4096, 50000, 10.0, 875),),
        1e-05,
        0.9877092862983893,
        0.9877092862982322,
        0.9039626608072721,
        0.9027723226354488,
        0.9016994546731487,
        0.90382128103824,
    ),
    Vector(
        "de2022_cifar10_eps1_n45000",
        ((4096, 45000, 10.0, 725),),
        1e-05,
        1.0007129444348213,
        1.00071294443469,
        0.9154884161344655,
        0.9145111761214492,
        0.9134397688026227,
        0.9155630359799646,
    ),
    Vector(
        "de2022_cifar10_eps8_n45000",
        ((4096, 45000, 3.0, 2468),),
        1e-05,
        7.977021162108611,
        7.977976243157038,
        7.400898192817759,
        7.400165256288181,
        7.3987919331948895,
        7.401524105773435,
    ),
    Vector(
        "mcmahan2018_dplstm_T5000",
        ((5000, 763430, 1.0, 5000),),
        1e-09,
        4.1832913875131545,
        4.183291789654646,
        3.9024735581153593,
        3.8988260031475583,
        3.8976329894697885,
        3.899883143850182,
    ),
    Vector(
        "fl_full_participation",
        ((1, 1, 5.0, 50),),
        1e-05,
        7.077391578166641,
        7.077391578166641,
        6.572970123762753,
        6.572970071144044,
        6.571643699362714,
        6.5742967682565,
    ),
    Vector(
        "fl_gaussian_once",
        ((1, 1, 1.0, 1),),
        1e-05,
        4.728507067217623,
        4.728507067217623,
        4.377178466841999,
        4.37717810002493,
        4.37594474290667,
        4.3784116832719,
    ),
    Vector(
        "fl_gaussian_10_x100",
        ((1, 1, 10.0, 100),),
        1e-05,
        4.728507067217623,
        4.728507067217623,
        4.377178466841999,
        4.37717810002493,
        4.375944782061762,
        4.378411663020213,
    ),
    Vector(
        "fl_q0.1",
        ((1, 10, 1.0, 100),),
        1e-05,
        7.899255002434629,
        7.903850223578231,
        7.046628942747837,
        7.04660287720805,
        7.045150083641914,
        7.048055584839887,
    ),
    Vector(
        "fl_q0.25",
        ((1, 4, 1.2, 200),),
        1e-05,
        22.14574851696555,
        22.27316157375254,
        20.46661873501461,
        20.466585011490363,
        20.464660472724095,
        20.468508177081677,
    ),
    Vector(
        "fl_q0.05_long",
        ((1, 20, 0.8, 1000),),
        1e-05,
        19.22229676381303,
        19.304226949225875,
        17.580913526781515,
        17.580739799992287,
        17.578865906560093,
        17.58260975257692,
    ),
    Vector(
        "fl_smallq",
        ((1, 10000, 0.6, 100000),),
        1e-06,
        2.2674398531270734,
        2.2674398814198513,
        0.9906773208025731,
        0.9637584244605347,
        0.9620980566008703,
        0.9644634462820019,
    ),
    Vector(
        "fl_high_eps",
        ((1, 50, 0.5, 1000),),
        1e-05,
        27.278508095924558,
        27.7237744834387,
        24.305667198591372,
        24.305534425272832,
        24.30313533157624,
        24.307924519852072,
    ),
    Vector(
        "fl_heterogeneous",
        (
            (1, 20, 1.2, 100),
            (1, 50, 0.9, 300),
            (1, 1, 8.0, 4),
        ),
        1e-05,
        4.23942062042747,
        4.239700421257288,
        3.7620053579921535,
        3.7618452300804703,
        3.7605908973463182,
        3.76309659263201,
    ),
    Vector(
        "pfl_cifar10_geometry_sigma1",
        ((1000, 1000000, 1.0, 1500),),
        1e-06,
        0.8758096940063561,
        0.8758096940063576,
        0.22913391895451998,
        0.2213480998585345,
        0.22025600992753896,
        0.22229160885588392,
    ),
    Vector(
        "silo_20steps_x30rounds",
        ((1, 20, 1.0, 600),),
        1e-05,
        9.111441720641714,
        9.115499259883615,
        8.289512026779475,
        8.289359718151784,
        8.287893543890908,
        8.290823261697613,
    ),
]


def spent(vector: Vector) -> dict[Event, int]:
    return {Poisson(Fraction(n, d), Gaussian(z)): steps for n, d, z, steps in vector.segments}


@pytest.mark.parametrize("vector", VECTORS, ids=[v.name for v in VECTORS])
def test_epsilon_matches_the_recorded_figures_of_every_accountant(vector: Vector) -> None:
    rdp, pld = epsilon(spent(vector), vector.delta, "rdp"), epsilon(spent(vector), vector.delta)
    assert rdp == pytest.approx(vector.rdp, rel=1e-6)
    assert pld == pytest.approx(vector.pld, abs=1e-4)
    assert vector.opacus_rdp <= rdp + 1e-6
    assert vector.prv_lower - 1e-3 <= vector.pld_fine <= vector.prv_upper + 1e-3
    assert vector.pld_fine - 1e-6 <= pld <= vector.pld_fine + 0.03
    assert min(rdp, pld) == pld
    if all(q == n for q, n, _, _ in vector.segments):  # one Gaussian in all: exact, a hair below what the grid gives
        assert vector.pld_fine - 1e-3 <= bound(spent(vector), vector.delta) <= pld
    else:
        assert bound(spent(vector), vector.delta) == pld


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.name in ("abadi2016_E100", "silo_20steps_x30rounds")], ids=lambda v: v.name)
def test_fine_grid_matches_and_lies_below_the_coarse_one(vector: Vector) -> None:
    fine = epsilon(spent(vector), vector.delta, interval=1e-4)
    assert fine == pytest.approx(vector.pld_fine, abs=1e-4)
    assert fine <= epsilon(spent(vector), vector.delta)


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.name == "silo_20steps_x30rounds"], ids=lambda v: v.name)
def test_pld_lies_in_the_bracket_that_opacus_prv_computes_now(vector: Vector) -> None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(z, n / d, steps) for n, d, z, steps in vector.segments]
    prv = accountant._get_dprv(eps_error=0.001, delta_error=vector.delta / 1000)
    low, _, high = prv.compute_epsilon(vector.delta, vector.delta / 1000, 0.001)
    assert low - 1e-3 <= epsilon(spent(vector), vector.delta, interval=1e-4) <= high + 1e-3


def test_ten_times_the_noise_a_hundred_times_is_one_gaussian() -> None:
    for by in ("pld", "rdp"):
        once, often = epsilon({Gaussian(1.0): 1}, 1e-5, by), epsilon({Gaussian(10.0): 100}, 1e-5, by)  # type: ignore[arg-type]
        assert once == pytest.approx(often, abs=1e-6)
    assert epsilon({Gaussian(1.0): 1}, 1e-5) == pytest.approx(4.377178095681137, abs=1e-3)


def test_truncated_poisson() -> None:
    event = TruncatedPoisson(100, Fraction(1, 10), 25, 1.0)
    assert epsilon({event: 100}, 1e-5) == pytest.approx(7.053984938195269, abs=1e-3)


@pytest.mark.parametrize(("steps", "restarts", "expected"), [(100, 1, 2.9585088589640254), (10, 10, 8.079406222420491)])
def test_tree_aggregation_is_bounded_by_rdp_only(steps: int, restarts: int, expected: float) -> None:
    charges: dict[Event, int] = {Tree(4.0, steps): restarts}
    assert epsilon(charges, 1e-5, "rdp") == pytest.approx(expected, rel=1e-6)
    assert bound(charges, 1e-5) == epsilon(charges, 1e-5, "rdp")


@pytest.mark.parametrize(
    ("sigma", "rounds", "pld", "halved", "wrong"),
    [
        (1.0, 1, 9.99725615024243, 10.725509696418232, 4.728507067217623),
        (2.0, 1, 4.37717810002493, 4.728507067217623, 2.165715659029443),
        (5.0, 20, 8.720755260426545, 9.367592761968732, 4.161624306053592),
    ],
)
def test_replace_one_doubles_the_sensitivity_in_both_accountants(
    sigma: float, rounds: int, pld: float, halved: float, wrong: float
) -> None:
    charges: dict[Event, int] = {Gaussian(sigma): rounds}
    assert epsilon(charges, 1e-5, "pld", 1e-4, "replace_one") == pytest.approx(pld, abs=1e-4)
    ours = epsilon(charges, 1e-5, "rdp", adjacency="replace_one")
    assert ours == pytest.approx(halved, rel=1e-6)
    assert wrong < pld < ours


@pytest.mark.parametrize(
    ("n", "m", "z", "rounds", "right", "wrong"),
    [
        (1000, 10, 1.0, 1000, 20.987072439841914, 3.576111482350549),
        (1000, 10, 2.0, 1000, 3.576111482350549, 1.445298242121019),
        (100, 10, 2.0, 100, 14.053750225346512, 5.3790096960759),
    ],
)
def test_without_replacement_never_takes_the_noise_over_the_clip_norm(
    n: int, m: int, z: float, rounds: int, right: float, wrong: float
) -> None:
    figure = epsilon({Wor(n, m, Gaussian(z)): rounds}, 1e-5, "rdp", adjacency="replace_one")
    assert figure == pytest.approx(right, rel=1e-6)
    assert figure > 2 * wrong


def test_two_releases_on_one_sample_cost_more_than_two_samples() -> None:
    same: dict[Event, int] = {Poisson(Fraction(1, 10), SelfComposed(2, Gaussian(1.0))): 100}
    joint: dict[Event, int] = {Poisson(Fraction(1, 10), Composed((Gaussian(1.0), Gaussian(1.0)))): 100}
    assert flatten(same) == flatten(joint)
    assert epsilon(same, 1e-5) == pytest.approx(14.274967410636272, abs=1e-3)
    assert epsilon(same, 1e-5, "rdp") == pytest.approx(16.098075423015878, rel=1e-6)
    assert epsilon({Poisson(Fraction(1, 10), Gaussian(1.0)): 200}, 1e-5) == pytest.approx(9.971275033604774, abs=1e-3)


@pytest.mark.parametrize(
    ("q", "steps", "delta", "sigma"),
    [("0.001", 1500, 1e-06, 0.6161467336802948), ("0.005", 2000, 1e-06, 0.8638925959645395), ("0.0005", 5000, 1e-05, 0.5455527859679479)],
)
def test_calibration_finds_the_recorded_noise(q: str, steps: int, delta: float, sigma: float) -> None:
    found = calibrate(lambda z: SelfComposed(steps, Poisson(Fraction(q), Gaussian(z))), 1, delta, 2.0)
    assert found == pytest.approx(sigma, rel=2e-3)
    event = SelfComposed(steps, Poisson(Fraction(q), Gaussian(found)))
    assert epsilon({event: 1}, delta) <= 2.0
    less = SelfComposed(steps, Poisson(Fraction(q), Gaussian(found * (1 - 1e-3))))
    assert epsilon({less: 1}, delta, interval=accountant.INTERVAL) > 2.0
