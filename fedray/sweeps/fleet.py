"""Runs trials side by side on Ray Tune: each in a placement group of its own, so that they never ask for more than the cluster has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fedray.choices import Resources
from fedray.clients.nodes import asks, covers
from fedray.config import Config
from fedray.errors import ConfigError, FedrayError
from fedray.planning.preparation import Prepared
from fedray.sweeps.onetrial import Trial, run_trial

#: Called when a trial's process has ended, with the trial's number and the score that it reported last.
Ended = Callable[[int, float | None], None]

_REDUCTION = 3


def bundles(prepared: Prepared, total: Mapping[str, float], concurrent: int) -> list[dict[str, float]]:
    """The placement group of one trial: an empty bundle for the trial's process, then one for each actor that asks for something.

    Args:
        prepared: the base config.
        total: what the cluster has, by Ray's names.
        concurrent: trials at a time.

    Raises:
        ConfigError: the cluster has no room for so many trials at a time.
    """
    config = prepared.config
    _check_labels(config)
    besides = [asks(config.ray.driver), asks(config.evaluation.resources) if prepared.test is not None else {}]
    needed = [each for each in besides if each]
    share = {name: amount / concurrent for name, amount in total.items()}
    if config.clients.placement == "dedicated":
        needed += [asks(group.resources) for group in prepared.groups for _ in group.members]
    else:
        kinds = [asks(group.resources) for group in prepared.groups]
        most = config.clients.actors if isinstance(config.clients.actors, int) else prepared.most_at_once
        needed += kinds
        number = len(kinds)
        while number < most and kinds[number % len(kinds)] and covers(share, _sum([*needed, kinds[number % len(kinds)]])):
            needed.append(kinds[number % len(kinds)])
            number += 1
    needed = [each for each in needed if each] or [{"CPU": 1.0}]
    if not covers(share, _sum(needed)):
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in _sum(needed).items())
        raise ConfigError(
            f"sweep.concurrent: {concurrent} trial(s) at a time need {wanted} each, more than this cluster has "
            f"({', '.join(f'{name} {total.get(name, 0.0):g}' for name in _sum(needed))}); lower sweep.concurrent or clients.resources."
        )
    return [{}, *needed]


def _sum(amounts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(a.get(name, 0.0) for a in amounts) for name in dict.fromkeys(n for a in amounts for n in a)}


def _check_labels(config: Config) -> None:
    places: list[Resources] = [config.clients.resources, config.evaluation.resources, config.ray.driver]
    places += [g.resources for g in config.clients.groups if g.resources is not None]
    if any(r.labels for r in places):
        raise ConfigError(
            "sweep: a trial is placed by amounts of resources, not by node labels; take the labels out, or use custom resources."
        )


def run_fleet(
    trials: Sequence[Trial], config: Config, groups: list[dict[str, float]], storage: Path, ended: Ended, stop: Sequence[int]
) -> None:
    """Run all trials; returns when they have ended, or soon after ``stop`` is no longer empty.

    Args:
        trials: at least one.
        config: the sweep.
        groups: the bundles of one trial.
        storage: folder of Ray Tune's own files and messages.
        ended: called in this process.
        stop: the signals that arrived.
    """
    os.environ |= {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    from ray import tune

    section = config.sweep
    assert section is not None
    known = {trial.number: trial for trial in trials}
    asha = section.scheduler == "asha"

    class Watch(tune.Callback):  # type: ignore[misc, unused-ignore]
        def __init__(self, listener: Ended) -> None:
            self._listener = listener

        def __getstate__(self) -> dict[str, Any]:  # Tune saves its callbacks, and this one belongs to this process
            return {}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._end(trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._end(trial)

        def _end(self, trial: Any) -> None:
            score = (trial.last_result or {}).get("score")
            self._listener(trial.config["trial"], None if score is None else float(score))

    class Stop(tune.Stopper):  # type: ignore[misc, unused-ignore]
        def __init__(self, signals: Sequence[int]) -> None:
            self._signals = signals

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(self._signals)

    def trainable(settings: Mapping[str, Any], known: Mapping[int, Trial]) -> None:
        trial = known[settings["trial"]]

        def report(row: Mapping[str, Any]) -> None:
            score = row["metrics"].get(trial.metric)
            if score is not None:
                tune.report({"score": score, "round": row["round"]})

        run_trial(trial, report if asha else None)

    placed = tune.with_resources(tune.with_parameters(trainable, known=known), tune.PlacementGroupFactory(groups))
    scheduler = None
    if asha:
        from ray.tune.schedulers import ASHAScheduler

        from fedray.sweeps.sweeprules import largest_is_best

        grace = min(section.grace or max(1, config.rounds // _REDUCTION**2), config.rounds)
        mode = "max" if largest_is_best(config) else "min"
        scheduler = ASHAScheduler(
            time_attr="round", metric="score", mode=mode, max_t=config.rounds + 1, grace_period=grace, reduction_factor=_REDUCTION
        )
    storage.mkdir(parents=True, exist_ok=True)
    tuner = tune.Tuner(
        placed,
        param_space={"trial": tune.grid_search(list(known))},
        tune_config=tune.TuneConfig(max_concurrent_trials=section.concurrent, scheduler=scheduler),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[Watch(ended)],
            stop=Stop(stop),
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    with open(storage / "messages.txt", "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        logging.disable()  # Tune logs past the file, and the names of its trials tell how many there are
        try:
            tuner.fit()
        except Exception as error:
            words = f"the trials could not be run ({type(error).__name__}); fedray sweep ... --resume continues the sweep."
            raise FedrayError(words) from (None if section.price == "sealed" else error)
        finally:
            logging.disable(logging.NOTSET)
