"""pFedMe: algorithm 1 written out, and what its clients' own models come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rehearsed import Rehearsed, config_of, few_shards, label_skewed, with_client_tests

from fedray.errors import ConfigError
from fedray.rng import Keyed
from fedray.training.plain import batches

FEDERATION, _ = label_skewed()


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of softmax regression's mean loss, float64; ``w`` has the weight and then the bias."""
    logits = x.astype(np.float64) @ w[:640].reshape(10, 64).T + w[640:]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p.T @ x / len(y)).ravel(), p.mean(0)])


def test_two_rounds_are_algorithm_1() -> None:
    """The paper's own quantities, in float64: R local rounds on mini-batches, K inner steps on each, and beta at the server."""
    pull, eta, inner, beta, steps = 7.0, 0.05, 0.08, 1.5, 3
    part = {"kind": "pfedme", "pull": pull, "inner_steps": 4, "inner_lr": inner, "weights": "uniform"}
    config = config_of(part, training={"lr": eta, "batch_size": 20, "steps": steps}, server={"kind": "sgd", "lr": beta})
    run = Rehearsed(config, FEDERATION)
    common, own = run.globals.astype(np.float64), {}
    for number, cohort in enumerate(([0, 4, 7], [4, 8])):
        found = []
        for k in cohort:
            rows = slice(*FEDERATION.offsets[k : k + 2])
            x, y, w = FEDERATION.train.x[rows], FEDERATION.train.y[rows], common.copy()
            for batch in batches(len(y), config.training, Keyed(config.seed, "batches", number)(k)):
                theta = w.copy()
                for _ in range(4):
                    theta -= inner * (gradient(theta, x[batch], y[batch]) + pull * (theta - w))
                w -= eta * pull * (w - theta)
            found.append(w)
            own[k] = theta
        common = (1 - beta) * common + beta * np.mean(found, 0)
        run.train([cohort])
    np.testing.assert_allclose(run.globals, common, rtol=0, atol=1e-4)
    measured = run.measured()
    for k, theta in own.items():
        np.testing.assert_allclose(measured[k], theta, rtol=0, atol=1e-4)
    assert measured[1].tobytes() == run.globals.tobytes()  # no turn yet


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pull": 0}, "pull: 0.0 is not above 0"),
        ({"inner_lr": -1.0}, "inner_lr: -1.0 is not above 0"),
        ({"inner_steps": 0}, "inner_steps: 0 is not 1 or more"),
        ({"pull": 20, "inner_lr": 0.1}, "set it below 0.1, 2 over algorithm.pull"),
    ],
)
def test_steps_that_lead_nowhere_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rehearsed(config_of({"kind": "pfedme", **arguments}), FEDERATION)


def test_models_of_their_own_fit_clients_with_few_labels() -> None:
    """Measured: FedAvg 0.458, pFedMe 0.929."""
    federation = with_client_tests(few_shards()[0])
    found = []
    for algorithm in ({"kind": "fedavg"}, {"kind": "pfedme"}):
        run = Rehearsed(config_of(algorithm, training={"lr": 0.1, "batch_size": 10, "epochs": 1}), federation)
        for _ in range(3):
            run.train([range(10)])
        found.append(run.client_accuracy())
    assert found[1] > found[0] + 0.25
