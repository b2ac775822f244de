"""Runs one config: prepares it, joins Ray, starts the driver actor and follows that to its end."""

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
from fedray.experiment.origin import Origin
from fedray.experiment.request import PartOf, Request
from fedray.experiment.signals import caught, kept_from_children
from fedray.faults import Listener
from fedray.runfiles import RunFiles, choose_output
from fedray.storage import read_json, reading
from fedray.stores.mirror import local_copy
from fedray.stores.object_path import Location

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from fedray.planning.preparation import Prepared

#: How often Ray restarts the driver after the loss of its process or node. In a placement group it is not restarted: if the group was
#: removed, Ray would keep the driver, and the output's name, in the state "being restarted" forever.
RESTARTS = 20

_POLL = 0.2  # seconds that the driver waits for an event before it answers
_ANSWER = 10.0  # seconds within which the driver must answer
_CONTROL = {"concurrency_group": "control"}


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
    output: Path | str
    config: Config

    @property
    def class_labels(self) -> list[Label]:
        """The data's own label of each class, in the order of the model's outputs; empty in regression."""
        with local_copy(self.output) as directory:
            path = RunFiles(directory).partition
            with reading(path):
                return list((read_json(path) or {})["class_labels"])

    def model(self, client: str | None = None) -> nn.Module:
        """Return the trained ``torch.nn.Module`` in evaluation mode. Its inputs are records as in training: normalised and encoded.

        Args:
            client: the client whose own model is wanted, of algorithms that give clients one (fedper, fedrep, ditto, pfedme); None: the model of all.

        Raises:
            FedrayError: there is no such model.
        """
        from fedray.experiment.finished import trained_model
        from fedray.experiment.personal import personal_model

        with local_copy(self.output) as directory:
            files = RunFiles(directory)
            return trained_model(files, self.config)[0] if client is None else personal_model(files, self.config, client)

    def predict(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return the model's outputs, float32 ``[n, outputs]``, for rows as they were before fedray read them.

        Args:
            rows: a pandas frame with the table's columns by name, or an array ``[n, *shape]``, or a dict of the records' inputs. Where ``data.normalize`` is
                ``standardize_client``, or the user's own without ``in_torch``, they must be normalised already.

        Raises:
            ValueError: a column is missing, a cell would have been refused in training, or the shape does not fit.
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
    part_of: PartOf | None = None,
) -> Result:
    """Train a federation.

    Args:
        config: a config, a path to one, or plain data.
        overrides: ``key.path=value``, applied to whatever ``config`` is.
        model: a factory in place of ``model.kind``, which the config may leave out; takes any of input_shape, outputs and the
            section's arguments.
        data: a function in place of ``data.source``, which the config may leave out; as for ``python:`` sources.
        callbacks: each is called with (kind, value) for every event; see :data:`fedray.faults.Listener`.
        output: output directory; default ``runs/NAME``.
        resume: whether to continue the run in ``output``.
        profile: whether to write where the rounds' time went (``profile.txt``, and ``profile.json`` for a trace viewer).
        part_of: set by a sweep; see :class:`fedray.experiment.request.PartOf`.

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
    if resolved.sweep is not None:
        raise ConfigError("sweep: this config describes a sweep; run it with fedray sweep, or set sweep=null to run the base config alone.")
    provided = {name: parts[path] for path, name in given.items()}
    components.provide(provided)
    where = choose_output(resolved.name, None if output is None else str(output), resume)
    if str(resolved.model.weights).startswith("models:"):
        from fedray.planning.initial import pinned

        resolved = pinned(resolved, RunFiles.at(where).root.parent)
    place = find_place(resolved.ray)
    # Importing torch and starting Ray both take long, so they run at the same time.
    origin = Origin.here(overrides) if part_of is None else part_of.origin
    request = Request(
        where,
        secrets.token_hex(8),
        resume,
        elastic=not place.own,
        provided=provided,
        profile=profile,
        origin=origin,
        part_of=part_of,
    )
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
    return Result(summary["status"], summary, where if isinstance(where, Path) else str(where), resolved)


class DriverLost(FedrayError):
    """The driver's actor was lost while the run was going on, and Ray does not restart it."""


@contextmanager
def _left_in_order(place: ClusterAddress, output: Location, listen: Listener) -> Iterator[None]:
    """End the driver's MLflow run if the driver could not do so itself, because its process died or a second Ctrl-C ended it."""
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
    """Prepare the run if it starts its own Ray, so that the data can be read here; else only check the config. Then make the output."""
    from fedray.experiment.driver_actor import prepare_run
    from fedray.planning.combinations import check_only

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
    """Start the driver's actor, or find the one that is at work on this output already.

    In a cluster that outlives this process the actor is detached, so that the run survives the loss of the head and of the command. It is
    named after the output, so that no output has two drivers.

    Raises:
        ConfigError: another run is at work on the output.
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


def driver_name(output: str | Location) -> str:
    """Return the name of an output's driver actor in Ray's namespace ``fedray``."""
    return f"fedray-driver-{hashlib.sha256(str(output).encode()).hexdigest()[:16]}"


def _at_work(output: Location) -> ConfigError:
    return ConfigError(f"--output {output}: a run is at work there already; add --resume to follow it, or choose another directory.")


def _make_room(output: Location, config: Config, resume: bool, patience: float, listen: Listener) -> None:
    """Wait until an earlier driver of this output that has ended or is stopping is gone; a driver that is at work stays, to be followed."""
    name, limit, told = driver_name(output), time.monotonic() + patience, False
    while True:
        try:
            driver = ray.get_actor(name, NAMESPACE)
        except ValueError:
            return
        try:
            running, ended = ray.get(driver.state.options(**_CONTROL).remote(), timeout=_ANSWER)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            running, ended = None, False  # it is being restarted, or is ending
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
    """Pass the driver's events on until the run ends, and turn signals into a stop after a checkpoint.

    Waits while the driver is restarted, and while its node or the head does not answer. Sends ``provided`` to each new driver process
    that awaits it.

    Returns:
        The run's summary.

    Raises:
        FedrayError: the error with which the run ended, or the driver is lost.
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
                    finished = True  # it may still be at work
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
            if batch.teller != teller and told:  # a new driver process has not been told yet
                driver.stop.options(**_CONTROL).remote()
            if batch.teller != teller and request.awaits:
                driver.provide.options(**_CONTROL).remote(provided)
            teller, position = batch.teller, batch.next
            for kind, value in batch.events:
                if kind == "request":  # names the request for which this driver was started
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
                    if value["round"] <= shown:  # a restarted driver repeats rounds
                        continue
                    shown = value["round"]
                listen(kind, value)
    finally:
        if not finished and not told:  # this follower ends, so nobody would take the result
            driver.stop.options(**_CONTROL).remote()
