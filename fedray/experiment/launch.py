"""Run one config: prepare, join Ray, start the driver actor, follow it to its end."""

from __future__ import annotations

import hashlib
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from fedray import components
from fedray.clients.nodes import in_placement_group, ray_options
from fedray.config import Config
from fedray.configfile import resolve_config
from fedray.data.records import Label
from fedray.errors import ConfigError, FedrayError, first_line
from fedray.experiment.background import Background
from fedray.experiment.cluster import NAMESPACE, ClusterAddress, find_place, joined, off_the_head
from fedray.experiment.listener import LAST
from fedray.experiment.occupied import PATIENCE, check_free
from fedray.experiment.request import Request
from fedray.experiment.signals import caught, kept_from_children
from fedray.runfiles import Output, RunFiles, choose_output
from fedray.storage import read_json, reading
from fedray.stores.mirror import local_copy

if TYPE_CHECKING:
    from fedray.planning.preparation import Prepared

#: How often Ray starts the driver again after its process or its node died. In a placement group it does not: where the group
#: was removed, Ray would keep the driver, and with it the output's name, as one that is being restarted, without end.
RESTARTS = 20

_POLL = 0.2  # seconds that the driver waits for something to tell
_ANSWER = 10.0  # seconds that it gets to answer
_CONTROL = {"concurrency_group": "control"}
Listener = Callable[[str, Any], None]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: completed, budget_reached, interrupted or failed.
        summary: the content of ``summary.json``.
        output: the run's directory, or its address in an object store.
        config: the resolved config.
    """

    status: str
    summary: dict[str, Any]
    output: Output
    config: Config

    @property
    def class_labels(self) -> list[Label]:
        """The data's own label of each of the model's classes, in class order; empty in regression."""
        with local_copy(self.output) as directory:
            path = RunFiles(directory).partition
            with reading(path):
                return list((read_json(path) or {})["class_labels"])

    def model(self) -> Any:
        """The trained ``torch.nn.Module``, in evaluation mode. It takes records as training saw them, normalised and encoded."""
        from fedray.experiment.finished import trained_model

        with local_copy(self.output) as directory:
            return trained_model(RunFiles(directory), self.config)[0]

    def predict(self, rows: Any) -> Any:
        """The model's outputs, float32 ``[n, outputs]``, for rows as they were before fedray read them.

        Args:
            rows: a pandas frame with the table's columns by name, or an array ``[n, *shape]``. Where ``data.normalize`` is
                ``standardize_client``, or the user's own without ``in_torch``, they must be normalised already.

        Raises:
            ValueError: a column is not there, a cell is not what training would have accepted, or the shape is another.
        """
        from fedray.experiment.served import predict

        with local_copy(self.output) as directory:
            return predict(RunFiles(directory), self.config, rows)


def run(
    config: Config | str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    model: Callable[..., Any] | None = None,
    data: Callable[..., Any] | None = None,
    callbacks: Sequence[Listener] = (),
    output: str | Path | None = None,
    resume: bool = False,
    profile: bool = False,
) -> Result:
    """Train a federation.

    Args:
        config: a config, a path to one, or plain data.
        overrides: ``key.path=value``, applied to whatever ``config`` is.
        model: a factory to use instead of ``model.kind``, which need not be there; takes any of input_shape, outputs and the
            section's arguments.
        data: a function to use instead of ``data.source``, which need not be there, as for ``python:`` sources.
        callbacks: called with (kind, value) for each event: ``joining`` (a sentence), ``started`` (facts), ``row`` (a round's line), ``note`` (a sentence).
        output: output directory; default ``runs/NAME``.
        resume: continue the run in ``output``.
        profile: write where the rounds' time went (``profile.txt``, and ``profile.json`` for a trace viewer).

    Raises:
        ConfigError: the config, the data or the cluster is not usable; nothing was trained.
        FedrayError: the run failed; its directory holds what was saved.
    """
    parts = {"model.kind": model, "data.source": data}
    for path, part in parts.items():
        if part is not None and not callable(part):
            raise ConfigError(
                f"{path.partition('.')[0]}: should be a function, but is a {type(part).__name__}; name a built-in in the config."
            )
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise ConfigError("callbacks: should be a list of functions of (kind, value).")
    given = {path: f"python:provided:{path.partition('.')[0]}" for path, part in parts.items() if part is not None}
    resolved = resolve_config(config, overrides, given)
    provided = {name: parts[path] for path, name in given.items()}
    components.provide(provided)
    where = choose_output(resolved.name, None if output is None else str(output), resume)
    place = find_place(resolved.ray)
    # torch takes long to import and Ray takes long to start, so the one goes on beside the other.
    request = Request(where, secrets.token_hex(8), resume, elastic=not place.own, provided=provided, profile=profile)
    if place.own:
        check_free(RunFiles.at(where), PATIENCE if resume else 0.0)
    preparing = Background(partial(_prepare, resolved, request))
    if "torch" in sys.modules or not place.own:
        preparing.result()

    def listen(kind: str, value: Any) -> None:
        for callback in callbacks:
            callback(kind, value)

    def joining(what: str) -> None:
        listen("joining", f"the config is in order; {what} and starting client actors ...")

    stop: list[int] = []
    with caught(stop, signal.SIGHUP), _left_in_order(place, where, listen), ExitStack() as held:
        with kept_from_children(signal.SIGHUP):
            held.enter_context(joined(place, resolved.ray, joining))
        prepared = preparing.result()
        if prepared is not None:
            listen("joining", "data and model are ready; starting client actors on a local Ray ...")
        with caught(stop, signal.SIGTERM, signal.SIGINT):
            packed = request.packed()
            driver = _start(resolved, packed, prepared, listen)
            del prepared, preparing  # the driver has the model and the test records now
            summary = _follow(driver, packed, provided, resolved.ray.lost_after, listen, stop)
    return Result(summary["status"], summary, where, resolved)


class DriverLost(FedrayError):
    """The driver's actor is gone for good, with the run under way."""


@contextmanager
def _left_in_order(place: ClusterAddress, output: Output, listen: Listener) -> Iterator[None]:
    """Where the driver goes without a chance to end its MLflow run (its process died, or a second Ctrl-C), end that here."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, DriverLost) or (place.own and not isinstance(error, FedrayError)):
            from fedray.tracking.opening import end_left

            with suppress(Exception):
                if not end_left(RunFiles.at(output).root, "FAILED" if isinstance(error, Exception) else "KILLED"):
                    listen("note", f"MLflow still shows the run as running; fedray sync {output} ends it there.")
        raise


def _prepare(config: Config, request: Request) -> Prepared | None:
    """What is known before anything starts; all of it where the run starts its own Ray, and the data can be read here. Then makes the output."""
    from fedray.experiment.driver_actor import prepare_run
    from fedray.planning.preparation import check_only

    if request.elastic:
        check_only(config)
        prepared = None
    else:
        prepared = prepare_run(config, request.resume)
    if request.mark is not None:
        RunFiles.at(request.output).create()
        request.mark.touch()
    return prepared


def _start(config: Config, request: Request, prepared: Prepared | None, listen: Listener) -> Any:
    """The driver's actor: new, or the one that is at work on this output already.

    On a cluster that outlives this process the actor does, too: it is detached, so that a lost head or a dead
    command does not take the run with it, and it has the output's name, so that no output has two.

    Raises:
        ConfigError: another run is at work there.
    """
    from fedray.experiment.driver_actor import Experiment, share_inputs

    settings = config.ray
    r = settings.driver
    grouped = in_placement_group()
    options = ray_options(r) | {"max_restarts": 0 if grouped else RESTARTS, "max_task_retries": 0}
    actor = ray.remote(concurrency_groups={"control": 8})(Experiment)
    if prepared is not None:
        node = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        driver = actor.options(**options, scheduling_strategy=strategy).remote(config, request, True)
        driver.give.remote(share_inputs(prepared))
        return driver
    name = driver_name(request.output)
    _make_room(request.output, config, request.resume, settings.lost_after, listen)
    options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    if not r.custom and not r.labels and not grouped and (selector := off_the_head()):
        options["label_selector"] = selector
    return actor.options(**options).remote(config, request, False)


def driver_name(output: Output) -> str:
    """Name of the driver's actor of an output, in the namespace ``fedray``."""
    return f"fedray-driver-{hashlib.sha256(str(output).encode()).hexdigest()[:16]}"


def _at_work(output: Output) -> ConfigError:
    return ConfigError(f"--output {output}: a run is at work there already; add --resume to follow it, or choose another directory.")


def _make_room(output: Output, config: Config, resume: bool, patience: float, listen: Listener) -> None:
    """Wait until a driver of this output that has ended, or was told to, is gone; one that is at work stays, to be followed."""
    name, limit, told = driver_name(output), time.monotonic() + patience, False
    while True:
        try:
            driver = ray.get_actor(name, NAMESPACE)
        except ValueError:
            return
        try:
            running, ended = ray.get(driver.state.options(**_CONTROL).remote(), timeout=_ANSWER)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            running, ended = None, False  # it is being restarted, or on its way out
        if running is not None and not ended:
            if running != config:
                from fedray.experiment.identity import differences

                raise ConfigError(
                    f"--output: a run with another config is at work there ({differences(running, config)}); stop it first (fedray jobs stop), "
                    "or choose another directory."
                )
            if not resume:
                raise _at_work(output)
            listen("note", "a driver is at work on this output already; following it")
            return
        if ended:
            driver.dismiss.options(**_CONTROL).remote()
        if not told:
            told = True
            listen("note", "waiting for the driver of an earlier start of this output to be gone")
        if time.monotonic() > limit:
            raise FedrayError(
                f"--output: the driver actor {name} of an earlier start does not end (waited {patience:g} s, ray.lost_after)."
            )
        time.sleep(_POLL)


def _follow(
    driver: Any, request: Request, provided: Mapping[str, Any], patience: float, listen: Listener, stop: Sequence[int]
) -> dict[str, Any]:
    """Pass the driver's events on until it ends; signals become a clean stop. Each new driver process is given what it awaits.

    The driver may die and come back meanwhile, and its node or the head may be away: that is waited for.

    Raises:
        FedrayError: what the run ended with, or the driver is gone for good.
    """
    told = finished = False
    teller, position, shown = "", 0, 0
    heard = time.monotonic()
    try:
        while True:
            if stop and not told:
                told = True
                listen("signal", stop[0])
                driver.stop.options(**_CONTROL).remote()
                listen("note", "stopping: the current round is given up, the last finished one is kept")
            try:
                batch = ray.get(driver.events.options(**_CONTROL).remote(teller, position, _POLL), timeout=_ANSWER)
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError) as error:
                if time.monotonic() - heard > patience:
                    finished = True  # it may well be at work
                    raise FedrayError(
                        f"the driver could not be reached for {patience:g} s (ray.lost_after: {first_line(error)}); "
                        f"`--resume --output {request.output}` follows it where it still runs, or continues from its last checkpoint."
                    ) from None
                time.sleep(_POLL)
                continue
            except ray.exceptions.RayActorError as error:
                finished = True
                raise DriverLost(
                    f"the driver died ({first_line(error)}); `--resume --output {request.output}` continues from its last checkpoint."
                ) from None
            heard = time.monotonic()
            if batch.teller != teller and told:  # a new driver process does not know yet
                driver.stop.options(**_CONTROL).remote()
            if batch.teller != teller and request.awaits:
                driver.provide.options(**_CONTROL).remote(provided)
            teller, position = batch.teller, batch.next
            for kind, value in batch.events:
                if kind == "request":  # whose driver this is
                    if value != request.id and not request.resume:
                        finished = True
                        raise _at_work(request.output)
                    continue
                if kind in LAST:
                    finished = True
                    driver.dismiss.options(**_CONTROL).remote()
                    if kind == "failed":
                        raise value
                    return dict(value)
                if kind == "row":
                    if value["round"] <= shown:  # a restarted driver tells a round again
                        continue
                    shown = value["round"]
                listen(kind, value)
    finally:
        if not finished and not told:  # whoever follows is no more: nobody would take the result
            driver.stop.options(**_CONTROL).remote()
