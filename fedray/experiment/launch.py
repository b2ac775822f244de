"""Run one config: prepare, join Ray, start the driver actor, follow it to its end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from fedray import components
from fedray.config import Config
from fedray.configfile import build_config, load_config
from fedray.errors import FedrayError, cause_of
from fedray.experiment.cluster import joined
from fedray.experiment.finished import trained_model
from fedray.experiment.job import Experiment
from fedray.experiment.planner import shortfalls
from fedray.experiment.preparation import Prepared, prepare
from fedray.experiment.wiring import Request
from fedray.runfiles import RunFiles, choose_output

log = logging.getLogger(__name__)

_POLL = 0.2
Listener = Callable[[str, Any], None]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: completed, budget_reached, interrupted or failed.
        summary: the content of ``summary.json``.
        output: the run's directory.
        config: the resolved config.
    """

    status: str
    summary: dict[str, Any]
    output: Path
    config: Config

    def model(self) -> Any:
        """The trained ``torch.nn.Module``, in evaluation mode."""
        return trained_model(RunFiles(self.output), self.config)[0]


def run(
    config: Config | str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    model: Callable[..., Any] | None = None,
    data: Callable[..., Any] | None = None,
    callbacks: Sequence[Listener] = (),
    output: str | None = None,
    resume: bool = False,
) -> Result:
    """Train a federation.

    Args:
        config: a config, a path to one, or plain data.
        overrides: ``key.path=value``.
        model: a factory to use instead of ``model.kind``; takes any of input_shape, outputs and the section's arguments.
        data: a function to use instead of ``data.source``, as for ``python:`` sources.
        callbacks: called with (kind, value) for each event: ``joining`` (a sentence), ``started`` (facts), ``row`` (a round's line), ``note`` (a sentence).
        output: output directory; default ``runs/NAME``.
        resume: continue the run in ``output``.

    Raises:
        ConfigError: the config, the data or the cluster is not usable; nothing was trained.
        FedrayError: the run failed; its directory holds what was saved.
    """
    provided: dict[str, Any] = {}
    if isinstance(config, str | Path):
        resolved = load_config(config, overrides)
    elif isinstance(config, Config):
        resolved = config
    else:
        resolved = build_config(dict(config))
    if model is not None:
        provided["python:provided:model"] = model
        resolved = resolved.model_copy(update={"model": resolved.model.model_copy(update={"kind": "python:provided:model"})})
    if data is not None:
        provided["python:provided:data"] = data
        resolved = resolved.model_copy(update={"data": resolved.data.model_copy(update={"source": "python:provided:data"})})
    components.provide(provided)
    root = choose_output(resolved.name, output, resume)
    files = RunFiles(root)
    prepared = prepare(resolved)
    if not resume:
        prepared.warnings += shortfalls(prepared)
    files.create()

    def listen(kind: str, value: Any) -> None:
        for callback in callbacks:
            callback(kind, value)

    with joined(
        resolved.ray, lambda where: listen("joining", f"data and model are ready; {where} and starting client actors ...")
    ) as local:
        request = Request(root, resume, elastic=not local, provided=provided)
        summary = _follow(prepared, request, listen)
    return Result(summary["status"], summary, root, resolved)


def _follow(prepared: Prepared, request: Request, listen: Listener) -> dict[str, Any]:
    """Start the driver actor and pass its events on until it ends; signals become a clean stop."""
    data = []
    if prepared.federation is not None and prepared.config.clients.placement == "hosted":
        data = [ray.put(replace(prepared.federation, test=None))]
    prepared.federation = None
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(concurrency_groups={"control": 2})(Experiment)
    driver = actor.options(num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=strategy).remote(prepared, data, request)
    control = {"concurrency_group": "control"}
    stop: list[int] = []
    told = False
    pending = driver.run.remote()
    with _signals(stop):
        while True:
            done, _ = ray.wait([pending], timeout=_POLL)
            if stop and not told:
                told = True
                listen("signal", stop[0])
                driver.stop.options(**control).remote()
                listen("note", "stopping: the current round is given up, the last finished one is kept")
            try:
                for kind, value in ray.get(driver.events.options(**control).remote()):
                    listen(kind, value)
            except ray.exceptions.RayActorError as error:
                raise FedrayError(
                    f"the driver died ({str(error).splitlines()[0]}); `--resume --output {request.root}` continues from its last checkpoint."
                ) from None
            if done:
                break
    try:
        summary: dict[str, Any] = ray.get(pending)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    return summary


@contextmanager
def _signals(stop: list[int]) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C ask for a clean stop; the second Ctrl-C ends at once.

    Installed after ``ray.init``, which installs its own handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
