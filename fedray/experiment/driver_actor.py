"""The driver actor: runs one experiment from preparation to summary."""

from __future__ import annotations

import gc
import logging
import pickle
import queue
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from fedray import __version__, components, credentials, logs
from fedray.attacks.attackers import Attackers
from fedray.config import Config
from fedray.driver import Driver, Loop
from fedray.errors import ClaimVoid, FedrayError, first_line
from fedray.experiment.description import agreed_tags, claim_tags, started, write_statement
from fedray.experiment.headwatch import watching_head
from fedray.experiment.listener import Batch, Events
from fedray.experiment.occupied import PATIENCE, occupied
from fedray.experiment.profile import chrome_trace, summarize, table
from fedray.experiment.request import Request
from fedray.experiment.served import served_model
from fedray.experiment.wiring import Wiring
from fedray.faults import Fault
from fedray.frozen import model_digest
from fedray.holder import Holder
from fedray.planning.planner import shortfalls
from fedray.planning.preparation import Prepared, prepare
from fedray.reporting.report_page import report_pages
from fedray.runfiles import RULE_CLIENTS, RunFiles, refuse_taken
from fedray.spans import keep_spans, taken_spans
from fedray.storage import write_json
from fedray.tracking.mlflow_tracker import STATUSES
from fedray.tracking.rundata import CLASS_RESULTS
from fedray.tracking.starts import ending, read_starts
from fedray.tracking.terminal import NoteHandler

log = logging.getLogger(__name__)

#: Seconds that a driver whose run has ended waits for a follower to take the result.
LINGER = 600.0

#: Seconds to wait for objects of the caller that are sent after the request.
OBJECTS_PATIENCE = 60.0

#: Further seconds after a follower has taken the result, for other followers.
_GRACE = 2.0

#: Seconds to wait for the actors' spans.
PROFILE_PATIENCE = 10.0

#: Seconds to wait for an output's store that does not answer, at the beginning and at the end.
STORE_PATIENCE = 120.0


@dataclass(frozen=True)
class Given:
    """What the command has prepared, so that the driver need not repeat it.

    Attributes:
        prepared: the run, without its records and weights.
        data: the reference of the records in the object store, in a list so that Ray does not fetch them.
        weights: the same of the model's weights: a vector that lay in one object with the rest would stay in memory as long as that.
            None where only the silos know what the model looks like.
    """

    prepared: Prepared
    data: Sequence[Any]
    weights: Holder[Any] | None


def prepare_run(config: Config, resume: bool) -> Prepared:
    """Call :func:`prepare`, and add a warning if the plan of a new run exceeds its budget."""
    prepared = prepare(config)
    return prepared if resume else replace(prepared, warnings=[*prepared.warnings, *shortfalls(prepared)])


def share_inputs(prepared: Prepared) -> Given:
    """Put the records, which the actors of each node share, and the model's weights into Ray's object store."""
    data = []
    if prepared.federation is not None and prepared.config.clients.placement == "hosted":
        data = [ray.put(replace(prepared.federation, test=None))]
    weights = None if prepared.model is None else Holder(ray.put(prepared.model.weights.take()))
    return Given(replace(prepared, federation=None), data, weights)


class Experiment:
    """The class of the driver actor.

    The run begins as soon as the actor starts, without a call, so that it continues from its last checkpoint when Ray restarts the actor
    after the loss of its process or node.

    Args:
        config: the run.
        request: what the command asked for.
        awaits: whether the command sends what it has prepared by :meth:`give`. In a cluster that outlives the command the driver reads
            the data itself, because the command's objects are lost when the command ends.
    """

    def __init__(self, config: Config, request: Request, awaits: bool) -> None:
        self._config, self._request = config, request
        self._given: queue.SimpleQueue[Given] = queue.SimpleQueue()
        self._objects: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._awaits = awaits and not ray.get_runtime_context().was_current_actor_reconstructed
        self._stop, self._taken, self._ended = threading.Event(), threading.Event(), False
        self._events = Events()
        self._events.put("request", request.id)
        self._files = RunFiles.at(request.output)
        self._was_on = ""  # host of the driver before its loss
        threading.Thread(target=self._main, name="run", daemon=True).start()

    def give(self, given: Given) -> None:
        """Receive what the command has prepared."""
        self._given.put(given)

    def provide(self, objects: Mapping[str, Any]) -> None:
        """Receive the caller's objects that were too large for the request; sent to each new driver process."""
        self._objects.put(objects)

    def events(self, teller: str, position: int, wait: float) -> Batch:
        """Return the events from ``position`` on; see :meth:`Events.since`."""
        return self._events.since(teller, position, wait)

    def stop(self) -> None:
        """Let the run end after a checkpoint."""
        self._stop.set()

    def state(self) -> tuple[Config, bool]:
        """Return the run's config, and whether the run has ended or was told to stop."""
        return self._config, self._ended or self._stop.is_set()

    def dismiss(self) -> None:
        """Let the actor end, because its result has been taken."""
        self._taken.set()

    def _main(self) -> None:
        last: tuple[str, Any]
        try:
            last = "ended", self._run()
        except Exception as error:
            if not isinstance(error, FedrayError):
                log.exception("the run failed")
            last = "failed", _sendable(error)
        self._ended = True  # before its command hears of it, which may go on with the same output at once
        self._events.put(*last)
        if self._request.mark is not None:
            self._request.mark.unlink(missing_ok=True)
        self._taken.wait(LINGER)
        time.sleep(_GRACE)
        ray.kill(ray.get_runtime_context().current_actor)  # Ray would restart an actor that only exits

    def _run(self) -> dict[str, Any]:
        """Fetch the output's files, train, and send what has changed; returns the content of ``summary.json``.

        Raises:
            FedrayError: the run failed; what could be saved is saved, and the MLflow run is marked FAILED.
        """
        credentials.load()
        logs.setup(self._config.name)
        logging.getLogger("fedray.tracking").addHandler(NoteHandler(partial(self._events.put, "note")))
        again = ray.get_runtime_context().was_current_actor_reconstructed
        request = self._with_objects()
        components.provide(request.provided)
        request = replace(request, resume=True) if again else request
        request.check_visible()
        with occupied(self._files, PATIENCE if request.resume else 0.0, insist=not again):
            if self._files.remote is None and self._files.taken and not request.resume:  # by a run that has ended in the meantime
                raise refuse_taken(request.output)
            return self._alone(request, again)

    def _alone(self, request: Request, again: bool) -> dict[str, Any]:
        """Continue :meth:`_run` while no other driver works in the output."""
        mirror = self._files.mirror(self._store_note)
        if mirror is not None:
            mirror.pull(request.resume, STORE_PATIENCE)
        self._was_on = self._files.last_node() if again else ""
        self._files = self._files.claim()
        if mirror is None:
            return self._ended_before(request) or self._train(request)
        mirror.start()
        try:
            summary = self._ended_before(request) or self._train(request)
        finally:
            missing = mirror.close(STORE_PATIENCE)
            self._sent(missing)
        if not missing:
            shutil.rmtree(self._files.root, ignore_errors=True)
        return summary

    def _with_objects(self) -> Request:
        if not self._request.awaits:
            return self._request
        try:
            return replace(self._request, provided=self._objects.get(timeout=OBJECTS_PATIENCE), awaits=False)
        except queue.Empty:
            raise FedrayError(
                "the model or data function given to fedray.run ended with the process that gave it, so a restarted driver cannot go on; "
                "name it in the config (python:module:attribute), and start again with --resume."
            ) from None

    def _ended_before(self, request: Request) -> dict[str, Any] | None:
        """Return the summary if this request's run had ended before Ray restarted the actor, else None."""
        try:
            found = self._files.read_summary()
        except FedrayError:  # a damaged summary is written anew at the end
            found = None
        return found if found is not None and found.get("request") == request.id else None

    def _store_note(self, text: str) -> None:
        fault = Fault("store", text, len(self._files.rows()) + 1)
        self._files.append_fault(fault)
        self._events.put("fault", fault)

    def _sent(self, missing: Sequence[str]) -> None:
        if missing:
            self._events.put(
                "note",
                f"{self._request.output}: the store was away for too long; {', '.join(missing)} are only in {self._files.root} on "
                f"{socket.gethostname()}; start the run again there with --resume when the store is back, and they are sent.",
            )

    def _train(self, request: Request) -> dict[str, Any]:
        began = time.monotonic()
        given = self._given.get() if self._awaits else share_inputs(prepare_run(self._config, request.resume))
        wiring = Wiring(given.prepared, given.data, given.weights, request, self._files, self._events, self._stop)
        if request.profile:
            keep_spans()
        try:
            loop = wiring.build()
            driver = Driver(loop, self._stop)
            wiring.tick = driver.tick
            if self._was_on:
                text = f"the driver on {self._was_on} was lost, and restarted on {socket.gethostname()}; it goes on after round {loop.first_round}."
                loop.record.fault(Fault("driver", text))
            self._events.put(
                "started",
                started(wiring.prepared, loop, request.output, wiring.run_id)
                | {"setup_seconds": time.monotonic() - began, "mlflow": None if wiring.tracker is None else wiring.tracker.link},
            )
            if loop.resumed and loop.first_round >= self._config.rounds:
                self._events.put(
                    "note",
                    f"the run in {request.output} is finished: its {loop.first_round} rounds were done before, and none is done again.",
                )
            setup = time.monotonic() - began
            gc.collect()
            gc.freeze()  # the programs and data of before never become garbage: each full collection in a round would look at all of them
            try:
                with watching_head(loop.record.fault) if request.elastic else nullcontext():
                    status = driver.run()
            except FedrayError as error:
                self._write(wiring, loop, driver, "failed", setup, error)
                raise
            return self._write(wiring, loop, driver, status, setup)
        except FedrayError as error:
            wiring.close(first_line(error))
            raise
        finally:
            wiring.close()

    def _write(
        self, wiring: Wiring, loop: Loop, driver: Driver, status: str, setup: float, error: FedrayError | None = None
    ) -> dict[str, Any]:
        """Write the model, the privacy statement and ``summary.json``, and end the MLflow run; returns the summary."""
        files, prepared, tracker = self._files, wiring.prepared, wiring.tracker
        problems = [str(error)] if isinstance(error, ClaimVoid) else []
        files.save_model(loop.layout, driver.weights, loop.frozen)
        digest = model_digest(driver.weights, loop.frozen)
        result = loop.record.result()
        summary: dict[str, Any] = {
            "status": status,
            "error": None if error is None else str(error),
            "name": loop.config.name,
            "rounds": result["rounds"],
            "planned_rounds": loop.config.rounds,
            "model_sha256": digest,
            "final": result["final"],
            "best": result["best"],
            "attack": Attackers.of(loop.config, loop.names).described(loop.names) or None,
            **({} if (m := prepared.model) is None or m.initial is None else {"initial": m.initial.described}),
            "agreed": None if loop.agreed is None else loop.agreed.summary(),
            "privacy": write_statement(prepared, loop, files, wiring.own_book, result["rounds"], result["left_out"], problems),
            "performance": {"setup_seconds": setup, **result["performance"]},
            "faults": result["faults"],
            "engine": None if prepared.model is None else prepared.model.engine,
            "profile": self._profile(loop),
            "mlflow": {"tracking_uri": None if tracker is None else tracker.uri, "run_id": None if tracker is None else tracker.run_id},
            "fedray": __version__,
            "request": self._request.id,
        }
        summary["ending"] = ending(summary, read_starts(files.root))
        files.write_summary(summary)
        counts = driver.by_class(len(prepared.class_labels)) if status in ("completed", "budget_reached") else None
        if counts is not None:
            write_json(
                files.root / CLASS_RESULTS, {"labels": list(prepared.class_labels), "confusion": counts.tolist(), "round": result["rounds"]}
            )
        if judged := driver.judged:
            rows = [
                dict(zip(("client", *judged), row, strict=True))
                for row in zip(loop.names, *map(np.ndarray.tolist, judged.values()), strict=True)
            ]
            write_json(files.root / RULE_CLIENTS, {"rows": rows})
        if tracker is not None:
            tags = {"fedray.stop_reason": status, "fedray.model_sha256": digest}
            tags |= agreed_tags(prepared, summary["agreed"]) | claim_tags(prepared, problems, summary["privacy"])
            build = partial(served_model, files, loop.config)
            patience, pages = loop.config.tracking.close_timeout, partial(report_pages, files.root, verify=False)
            complete = tracker.close(STATUSES[status], patience, model=build, tags=tags, pages=pages)
            summary["mlflow"] |= {"complete": complete, "registered": tracker.registered(digest)}
            files.write_summary(summary)
            if not complete:
                self._events.put(
                    "note",
                    f"MLflow at {tracker.uri} was away for too long; nothing is lost: fedray sync {self._request.output} sends the rest.",
                )
        if loop.receipts is not None:  # last, since it signs all files
            loop.receipts.end(result["rounds"], status, digest, loop.books.heads())
        return summary

    def _profile(self, loop: Loop) -> dict[str, Any]:
        """Write where the rounds' time went, if the request asks for it.

        Returns:
            The same for the summary; empty if the request does not ask for it, or if durations would tell how many clients took part:
            the summary is sent to MLflow.
        """
        if not self._request.profile:
            return {}
        driver, actors = taken_spans(), loop.pool.spans(PROFILE_PATIENCE)
        found = summarize(driver, actors)
        self._files.save_profile(table(found), chrome_trace(driver, actors))
        return {} if loop.regime.hides_clients else found


def _sendable(error: Exception) -> Exception:
    """Return the error itself if it can be pickled, else a FedrayError with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return FedrayError(f"unexpected {type(error).__name__}: {first_line(error)} (see the driver's log)")
    return error
