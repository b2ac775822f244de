"""Runs that are called from within Ray: in a Ray Tune trial, in an actor, beside a placement group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from paths import ROOT
from processes import wait_until
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import fedray
from fedray.errors import ConfigError
from fedray.experiment.cluster import NAMESPACE
from fedray.experiment.launch import driver_name
from fedray.runfiles import RunFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Said at once; a run that waits for its actors says something else after this many seconds.
SETTINGS = ["rounds=1", "tracking.enabled=false", "clients.start_timeout=600"]
CONFIG = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture
def two_cpus() -> Iterator[None]:
    """A Ray of two CPUs for one test: what one leaves, Tune's placement groups for example, is not in the way of the next."""
    here = Path(__file__).parent
    own = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}}  # for this module
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=own)
    yield
    ray.shutdown()


def trained(folder: Path, name: str, lr: float = 8.0) -> dict[str, Any]:
    result = fedray.run(CONFIG, overrides=[*SETTINGS, f"training.lr={lr}"], output=str(folder / name))
    return {"accuracy": result.summary["final"]["eval/accuracy"], "rounds": result.summary["rounds"]}


@pytest.mark.usefixtures("two_cpus")
def test_an_actor_that_holds_all_cpus_is_told_at_once_and_one_that_leaves_some_trains(tmp_path: Path) -> None:
    class Caller:
        def train(self, name: str) -> dict[str, Any]:
            return trained(tmp_path, name)

    greedy = ray.remote(Caller).options(num_cpus=2).remote()
    with pytest.raises(ConfigError, match=r"Ray job itself holds.*actor .*Caller holds CPU 2, of CPU 2.*num_cpus=0"):
        ray.get(greedy.train.remote("greedy"), timeout=300)
    ray.kill(greedy)
    assert ray.get(ray.remote(Caller).options(num_cpus=0).remote().train.remote("modest"), timeout=600)["rounds"] == 1


@pytest.mark.usefixtures("two_cpus")
def test_a_placement_group_beside_the_run_is_named(tmp_path: Path) -> None:
    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    with pytest.raises(ConfigError, match="a placement group holds CPU 2, of CPU 2"):
        trained(tmp_path, "beside")
    ray.util.remove_placement_group(group)


@pytest.mark.usefixtures("two_cpus")
def test_a_driver_goes_with_its_placement_group_and_its_output_is_free_to_resume(tmp_path: Path) -> None:
    """What Ray Tune does with a trial that it ends early: the trial's actor is killed, and its placement group removed."""
    output = tmp_path / "run"
    settings = [*SETTINGS, "checkpoint.every=1"]

    class Trial:
        def train(self) -> None:
            fedray.run(CONFIG, overrides=[*settings, "rounds=20000"], output=str(output))

    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True)
    trial = ray.remote(Trial).options(num_cpus=1, scheduling_strategy=inside).remote()
    trial.train.remote()
    wait_until(lambda: len(RunFiles(output).rows()) >= 2, "two rounds", 300)
    ray.kill(trial)
    ray.util.remove_placement_group(group)

    def gone() -> bool:
        try:
            ray.get_actor(driver_name(str(output)), NAMESPACE)
        except ValueError:
            return True
        return False

    wait_until(gone, "the driver is gone", 60)
    done = len(RunFiles(output).rows())
    result = fedray.run(CONFIG, overrides=[*settings, f"rounds={done + 1}"], output=str(output), resume=True)
    assert (result.status, result.summary["rounds"]) == ("completed", done + 1)


def fitted(folder: Path, rates: list[float], *bundles: dict[str, float]) -> Any:
    """Trials of Ray Tune, each a run with its own learning rate in a placement group of those bundles."""
    from ray import tune

    def trial(settings: dict[str, Any]) -> dict[str, Any]:
        return trained(folder, f"trial-{settings['lr']}", settings["lr"])

    with_bundles = tune.with_resources(trial, tune.PlacementGroupFactory(list(bundles)))
    where = tune.RunConfig(storage_path=str(folder / "tune"), verbose=0)
    return tune.Tuner(with_bundles, param_space={"lr": tune.grid_search(rates)}, run_config=where).fit()


@pytest.mark.usefixtures("two_cpus")
def test_a_tune_trial_without_bundles_for_clients_is_told_what_to_set(tmp_path: Path) -> None:
    results = fitted(tmp_path, [2.0], {"CPU": 1})
    assert "tune.PlacementGroupFactory([{'CPU': 1}, {'CPU': 1.0}])" in str(results.errors[0])


@pytest.mark.usefixtures("two_cpus")
def test_tune_trials_train_where_their_placement_group_has_bundles_for_clients(tmp_path: Path) -> None:
    """The example of the README."""
    results = fitted(tmp_path, [2.0, 8.0], {"CPU": 1}, {"CPU": 1})
    assert [(r.metrics["rounds"], r.error) for r in results] == [(1, None)] * 2
