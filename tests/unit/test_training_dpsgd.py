"""DP-SGD engines against an explicit loop over records, and the properties that the privacy claim rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from elsewhere import there
from rounding import FLOAT32, apart, gamma, steps_apart, terms_of
from scipy import stats
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ConfigError, PrivacyRefusal, Stopped
from fedray.privacy.csprng import Csprng, InsecureSeeded
from fedray.training.bookkeeping import book
from fedray.training.dpsgd import ghost, hooks
from fedray.training.engine import DpStep, LocalJob
from fedray.training.losses import cross_entropy

book, ghost, hooks = there(book), there(ghost), there(hooks)

#: A correct engine fails one statistical test with this probability.
ALPHA = 1e-6
ENGINES = pytest.mark.parametrize("engine", [book, hooks, ghost])
CLIPPED = pytest.mark.parametrize(
    ("engine", "clipping"), [(book, "flat"), (book, "per_layer"), (hooks, "flat"), (hooks, "per_layer"), (ghost, "flat")]
)
Floats = npt.NDArray[np.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


class Scripted:
    """Known coins, and noise that is zero or given."""

    def __init__(self, coins: Floats, noise: Callable[[int], Floats] = np.zeros) -> None:
        self._coins, self._noise, self._step = coins, noise, 0

    def uniform(self, n: int) -> Floats:
        self._step += 1
        return self._coins[self._step - 1][:n]

    def normal(self, n: int) -> Floats:
        return self._noise(n)


class Tokens(nn.Module):
    """Embedding, a layer used twice, a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.twice, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x)
        return self.head(self.twice(self.twice(hidden).tanh()).mean(1))


class TokensOnce(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.embedding(x)).tanh().mean(1))


def flat() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def images() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))


def records(kind: str, n: int = 37) -> tuple[Callable[[], nn.Module], Tensor, Tensor]:
    draws = np.random.default_rng(0)
    y = torch.from_numpy(draws.integers(0, 3, n))
    if kind == "flat":
        return flat, torch.from_numpy(draws.standard_normal((n, 6), dtype=np.float32) * 3), y
    if kind == "images":
        return images, torch.from_numpy(draws.standard_normal((n, 2, 5, 5), dtype=np.float32)), y
    return (Tokens if kind == "tied" else TokensOnce), torch.from_numpy(draws.integers(0, 11, (n, 7))), y


def training(**more: Any) -> Training:
    return Training(**{"lr": 0.5, "sampling_rate": 0.4, "steps": 3, "expected_batch": 12.0, **more})


def job(settings: Training, noise: Any, z: float = 0.0, clip: float = 0.3, clipping: Any = "flat", **more: Any) -> LocalJob:
    return LocalJob(settings, settings.lr, cross_entropy, np.random.default_rng(0), noise, DpStep(z, clip, clipping), **more)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(
    model: nn.Module, x: Tensor, y: Tensor, coins: Floats, q: float, steps: int, batch: float, lr: float, clip: float, clipping: str
) -> None:
    """One record after the other."""
    parameters = list(model.parameters())
    for step in range(steps):
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        for i in np.flatnonzero(coins[step][: len(x)] < q):
            gradients = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
            norms = [float(g.double().norm()) for g in gradients]
            for t, g, norm in zip(total, gradients, norms, strict=True):
                own = clip / max(norm, 1e-30) / len(gradients) ** 0.5
                t += g.double() * min(1.0, own if clipping == "per_layer" else clip / np.linalg.norm(norms))
        with torch.no_grad():
            for p, t in zip(parameters, total, strict=True):
                p -= lr * (t / batch).to(p.dtype)


@pytest.mark.parametrize("kind", ["flat", "images", "tokens", "tied"])
@pytest.mark.parametrize("physical", [256, 4])
@pytest.mark.parametrize("clip", [0.3, 1e3])
@CLIPPED
def test_an_engine_equals_the_loop_over_records(engine: Any, clipping: Any, kind: str, physical: int, clip: float) -> None:
    if engine is not hooks and kind == "tied":
        pytest.skip("ghost and book refuse layers that are used twice")
    make, x, y = records(kind)
    torch.manual_seed(3)
    model = make()
    torch.manual_seed(3)
    reference = make()
    coins = np.random.default_rng(5).random((3, len(x)))
    by_hand(reference, x, y, coins, 0.4, 3, 12.0, 0.5, clip, clipping)
    start = vector(model)
    result = engine(model, x, y, job(training(physical_batch=physical), Scripted(coins), clip=clip, clipping=clipping))
    moved, expected = vector(model) - start, vector(reference) - start
    assert apart(moved, expected) <= steps_apart(start, reference, terms_of(model, x[0].numel() * len(x)), steps=3)
    assert result.history == [(0.0, 0.4, 3)]


@ENGINES
def test_the_result_tells_nothing_private(engine: Any) -> None:
    make, x, y = records("flat")
    result = engine(make(), x, y, job(training(), Csprng(), z=1.3))
    assert result.loss is None
    assert (result.steps, result.examples) == (3, 36)
    assert result.history == [(1.3, 0.4, 3)]


@ENGINES
def test_nothing_of_the_wrapper_is_left(engine: Any) -> None:
    make, x, y = records("images")
    model = make()
    before = {k: v.shape for k, v in model.state_dict().items()}
    clean = {m: set(vars(m)) for m in model.modules()}
    for _ in range(2):
        engine(model, x, y, job(training(), Csprng(), z=1.0))
    assert {k: v.shape for k, v in model.state_dict().items()} == before
    assert {m: set(vars(m)) for m in model.modules()} == clean
    for m in model.modules():
        assert not m._forward_hooks
        assert not m._backward_hooks
    for p in model.parameters():
        assert p.grad is None
        assert not [a for a in vars(p) if "grad_sample" in a or "norm_sample" in a or "forward_counter" in a]
    cross_entropy(model(x), y).sum().backward()


@ENGINES
def test_an_exception_leaves_a_usable_model(engine: Any) -> None:
    make, x, y = records("flat")
    model = make()

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("no loss today")

    bad = LocalJob(training(), 0.5, broken, np.random.default_rng(0), Csprng(), DpStep(1.0, 1.0))
    with pytest.raises(RuntimeError, match="no loss today"):
        engine(model, x, y, bad)
    engine(model, x, y, job(training(), Csprng(), z=1.0))
    calls = iter([False, True])
    with pytest.raises(Stopped):
        engine(model, x, y, job(training(), Csprng(), z=1.0, should_stop=lambda: next(calls)))
    engine(model, x, y, job(training(), Csprng(), z=1.0))


@ENGINES
def test_empty_batches_are_charged_steps_of_pure_noise(engine: Any) -> None:
    steps, z, clip, batch, lr = 400, 1.7, 0.5, 12.0, 0.5
    make, x, y = records("flat")
    model = make()
    start = vector(model).double()
    rates = training(sampling_rate=1e-12, steps=steps)
    result = engine(model, x, y, job(rates, Csprng(), z=z, clip=clip))
    assert result.history == [(z, 1e-12, steps)]
    # The noise of the steps adds up to one Gaussian in each coordinate; its variance is chi-square distributed.
    moved = (vector(model).double() - start).numpy() / (lr * z * clip / batch * np.sqrt(steps))
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], len(moved))
    assert low < float(moved @ moved) < high
    assert stats.kstest(moved, "norm").pvalue > ALPHA


@ENGINES
def test_the_noise_of_one_step_has_the_charged_deviation_on_the_sum(engine: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 300)
    taken: list[Tensor] = []
    one = training(sampling_rate=1e-12, steps=1)
    adjust = lambda m: taken.extend(p.grad.cpu().clone() for p in m.parameters())  # noqa: E731
    engine(model, torch.zeros(4, 300), torch.zeros(4, dtype=torch.int64), job(one, Csprng(), z=2.0, clip=0.25, adjust=adjust))
    noise = torch.cat([t.flatten() for t in taken]).double().numpy() * 12.0
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], len(noise)) / len(noise)
    assert low < float(np.mean((noise / (2.0 * 0.25)) ** 2)) < high


@ENGINES
def test_noise_differs_between_rounds_clients_steps_and_tensors(engine: Any) -> None:
    def release(noise: Any) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(30, 30)
        steps: list[Tensor] = []
        adjust = lambda m: steps.append(torch.cat([p.grad.flatten() for p in m.parameters()]).cpu())  # noqa: E731
        rates = training(sampling_rate=1e-12, steps=2)
        engine(model, torch.zeros(4, 30), torch.zeros(4, dtype=torch.int64), job(rates, noise, z=1.0, adjust=adjust))
        return torch.stack(steps)

    for a, b in [(release(Csprng()), release(Csprng())), (release(InsecureSeeded(0, 1, "a")), release(InsecureSeeded(0, 2, "a")))]:
        stacked = torch.cat([a, b])
        correlation = torch.corrcoef(stacked) - torch.eye(4)
        assert float(correlation.abs().max()) < 0.2  # 930 values: six standard errors


def test_global_seeds_do_not_reach_the_noise() -> None:
    make, x, y = records("flat")
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        model = flat()
        hooks(model, x, y, job(training(), Csprng(), z=1.0))
        ends.append(vector(model))
    assert not torch.allclose(ends[0], ends[1])


@ENGINES
def test_every_record_joins_every_step_at_its_own_coin(engine: Any) -> None:
    n, steps, q = 40, 250, 0.15
    drawn = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            drawn.append(x[:, 0].long().cpu())
            return self.layer(x)

    x, y = torch.arange(n, dtype=torch.float32)[:, None], torch.zeros(n, dtype=torch.int64)
    rates = training(sampling_rate=q, steps=steps, lr=1e-6)
    engine(Counting(), x, y, job(rates, Csprng(), z=0.0, clip=1e-6))
    each = np.bincount(torch.cat(drawn).numpy(), minlength=n)
    low, high = stats.binom.ppf([ALPHA / 2 / n, 1 - ALPHA / 2 / n], steps, q)
    assert ((each >= low) & (each <= high)).all()
    sizes = np.array([len(d) for d in drawn])
    assert all(len(set(d.tolist())) == len(d) for d in drawn)
    _, p = stats.chisquare(*_cells(sizes, n, q))
    assert p > ALPHA


def _cells(sizes: npt.NDArray[np.int64], n: int, q: float) -> tuple[Floats, Floats]:
    """Observed and expected numbers of steps by batch size, Binomial(n, q), in cells of at least five expected."""
    expected = len(sizes) * stats.binom.pmf(np.arange(n + 1), n, q)
    inside = np.flatnonzero(expected >= 5)
    place = np.clip(np.arange(n + 1), inside[0], inside[-1])
    return tuple(np.bincount(place, weights=w)[inside[0] :] for w in (np.bincount(sizes, minlength=n + 1), expected))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["flat", "images"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@ENGINES
def test_a_record_without_a_finite_gradient_contributes_nothing(engine: Any, kind: str, value: float) -> None:
    make, x, y = records(kind)
    bad = x.clone()
    bad[3] = value
    everyone = np.zeros((3, len(x)))
    start, model, reference = make(), make(), make()
    full = training(sampling_rate=1.0)
    result = engine(model, bad, y, job(full, Scripted(everyone)))
    keep = torch.arange(len(x)) != 3
    engine(reference, x[keep], y[keep], job(full, Scripted(everyone)))
    assert torch.isfinite(vector(model)).all()
    if not np.isfinite(value):
        assert apart(model, reference) <= steps_apart(start, reference, terms_of(start, x[0].numel() * len(x)), steps=3)
    else:
        assert float((vector(model) - vector(reference)).norm()) <= 3 * 0.5 * 0.3 / 12.0 * 1.5
    assert result.history == [(0.0, 1.0, 3)]


@ENGINES
def test_a_batch_of_only_bad_records_is_a_step_of_noise(engine: Any) -> None:
    make, x, y = records("flat", 5)
    model = make()
    start = vector(model)
    engine(model, x * float("nan"), y, job(training(sampling_rate=1.0), Scripted(np.zeros((3, 5)))))
    assert torch.equal(vector(model), start)


@ENGINES
def test_no_records_at_all_still_is_noise(engine: Any) -> None:
    model = flat()
    start = vector(model)
    result = engine(model, torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64), job(training(), Csprng(), z=1.0))
    assert result.history == [(1.0, 0.4, 3)]
    assert float((vector(model) - start).norm()) > 0


@ENGINES
def test_engines_clip_with_dropout_to_the_same_bound(engine: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.ReLU(), nn.Linear(50, 3))
    _, x, y = records("flat", 1)
    x[0] = 30.0
    taken: list[float] = []
    adjust = lambda m: taken.append(float(torch.cat([p.grad.double().flatten() for p in m.parameters()]).norm()))  # noqa: E731
    rates = training(sampling_rate=1.0, steps=20, expected_batch=1.0)
    engine(model, x, y, job(rates, Scripted(np.zeros((20, 1))), clip=0.2, adjust=adjust))
    assert len(taken) == 20
    assert max(taken) <= 0.2 * (1 + 1e-6)
    assert max(taken) > 0.2 * (1 - 1e-4)


@ENGINES
def test_what_the_algorithm_adjusts_comes_after_the_noise(engine: Any) -> None:
    make, x, y = records("flat")
    model, reference = make(), make()
    coins = np.ones((3, len(x)))

    def pull(m: nn.Module) -> None:
        for p in m.parameters():
            assert p.grad is not None
            p.grad += 100.0

    engine(model, x, y, job(training(), Scripted(coins), clip=0.1, adjust=pull))
    assert torch.allclose(
        vector(model), vector(reference) - 3 * 0.5 * 100.0, atol=3 * 2 * FLOAT32 * 250
    )  # each step adds and subtracts once


@ENGINES
def test_momentum_adam_and_weight_decay_are_the_optimisers(engine: Any) -> None:
    make, x, y = records("flat")
    empty = np.ones((2, len(x)))
    model, reference = make(), make()
    decay = training(steps=2, weight_decay=0.1)
    engine(model, x, y, job(decay, Scripted(empty)))
    assert torch.allclose(vector(model), vector(reference) * (1 - 0.5 * 0.1) ** 2, rtol=gamma(10), atol=0)  # five operations a step
    adam = make()
    engine(adam, x, y, job(training(steps=2, optimizer="adam", lr=0.01), Scripted(empty, np.ones), z=1.0))
    assert torch.allclose(vector(adam), vector(reference) - 0.02, atol=gamma(40))  # weights of at most 1, twenty operations a step


@ENGINES
def test_frozen_parameters_stay_and_do_not_count(engine: Any) -> None:
    make, x, y = records("flat")
    model = make()
    model[0].requires_grad_(False)  # type: ignore[index]
    before = model[0].weight.clone()  # type: ignore[index]
    engine(model, x, y, job(training(), Csprng(), z=1.0))
    assert torch.equal(model[0].weight, before)  # type: ignore[index]


def test_a_loss_that_reduces_over_records_is_refused() -> None:
    make, x, y = records("flat")
    mean = LocalJob(
        training(), 0.5, lambda o, t: cross_entropy(o, t).mean(), np.random.default_rng(0), Scripted(np.zeros((3, 37))), DpStep(1.0, 1.0)
    )
    for engine in (book, hooks, ghost):
        with pytest.raises(ConfigError, match="return one loss for each"):
            engine(make(), x, y, mean)


@ENGINES
def test_a_model_with_state_and_a_job_without_privacy_are_refused(engine: Any) -> None:
    _, x, y = records("flat")
    with pytest.raises(PrivacyRefusal, match="GroupNorm"):
        engine(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False)), x, y, job(training(), Csprng(), z=1.0))
    for missing in ({"noise": None}, {"dp": None}):
        bare = LocalJob(training(), 0.5, cross_entropy, np.random.default_rng(0), **{"noise": Csprng(), "dp": DpStep(1.0, 1.0)} | missing)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="record-level DP-SGD needs"):
            engine(flat(), x, y, bare)


@pytest.mark.parametrize("engine", [book, ghost])
def test_layers_that_are_used_twice_are_for_hooks(engine: Any) -> None:
    make, x, y = records("tied")
    with pytest.raises(ConfigError, match=f"{engine.__name__} cannot clip this model .* use .*hooks"):
        engine(make(), x, y, job(training(sampling_rate=1.0), Csprng(), z=1.0))


def test_ghost_clips_flat_only() -> None:
    make, x, y = records("flat")
    with pytest.raises(ConfigError, match="book or hooks with privacy.clipping=per_layer"):
        ghost(make(), x, y, job(training(), Csprng(), z=1.0, clipping="per_layer"))


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.9, "nesterov": True}, {"optimizer": "adam", "lr": 0.01}, {"optimizer": "adamw", "lr": 0.01}]
)
def test_engines_agree_across_steps_with_an_optimiser_that_remembers(settings: dict[str, Any]) -> None:
    make, x, y = records("images")
    coins, ends = np.random.default_rng(7).random((8, len(x))), []
    for engine in (book, hooks, ghost):
        torch.manual_seed(3)
        model = make()
        start = vector(model)
        seeded = InsecureSeeded(0, 1, "a")
        scripted = Scripted(coins, seeded.normal)
        engine(model, x, y, job(training(steps=8, physical_batch=5, **settings), scripted, z=0.5))
        ends.append(vector(model) - start)
    # Adam moves a weight by the sign of its gradient, so one whose gradient is nearly zero may turn either way: a few of all may.
    few = 4 / len(start) ** 0.5 * float(ends[0].norm()) if "optimizer" in settings else 0.0
    for end in ends[1:]:
        assert apart(end, ends[0]) <= few + steps_apart(start, start + ends[0], terms_of(model, x[0].numel() * len(x)), steps=8)


class Borrowed(nn.Module):
    """Uses a weight outside its own layer, where no engine sees its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Linear(6, 3)})

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner["a"].weight)


@ENGINES
def test_a_gradient_that_the_engine_does_not_see_is_an_error(engine: Any) -> None:
    _, x, y = records("flat")
    with pytest.raises(ConfigError, match="no gradient for each record"):
        engine(Borrowed(), x, y, job(training(sampling_rate=1.0), Csprng(), z=1.0))


@ENGINES
def test_what_a_loss_subtracts_is_not_rounded_by_a_factor(engine: Any) -> None:
    """Its gradient is 1 - 0.9999, exactly; factor - factor * 0.9999 would be off by up to 6e-4 of that, either way."""
    clips, taken = [0.3 * 1.07**-k for k in range(20)], list[float]()

    def take(model: nn.Module) -> None:
        taken.append(float(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]).norm()))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e5 * outputs[:, 0] - 1e5 * (outputs[:, 0] * 0.9999)

    x, y = torch.arange(1.0, 7.0)[None], torch.zeros(1, dtype=torch.int64)
    full = training(sampling_rate=1.0, steps=1, lr=1.0, expected_batch=1.0)
    for clip in clips:
        torch.manual_seed(0)
        everyone = Scripted(np.zeros((1, 1)))
        engine(nn.Linear(6, 3), x, y, LocalJob(full, 1.0, loss, np.random.default_rng(0), everyone, DpStep(0.0, clip, "flat"), take))
    assert max(t / c for t, c in zip(taken, clips, strict=True)) <= 1 + 1e-5
    assert min(t / c for t, c in zip(taken, clips, strict=True)) > 1 - 1e-5
