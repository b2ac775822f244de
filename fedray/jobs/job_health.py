"""The health of a run that is a Ray job, from the cluster's HTTP interfaces: the job, its structured log, its actors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from fedray import logs
from fedray.errors import FedrayError
from fedray.experiment.cluster import NAMESPACE
from fedray.experiment.launch import driver_name
from fedray.jobs.job_client import Client
from fedray.jobs.submission import NAME, OUTPUT
from fedray.rounding import rounded_up

_SHOWN_ROWS = 3
_SHOWN_FAULTS = 8


@dataclass
class Progressed:
    """What a structured log says about a run; None where it says nothing.

    Attributes:
        run: id or name of the run.
        output: where the run's files are.
        rounds: number of finished rounds.
        planned: number of planned rounds.
        epsilon: epsilon that is spent.
        budget: epsilon at which clients are refused.
        rows: sentences on the last rounds.
        faults: warnings and errors, in order.
        ended: final status.
        error: the error with which the command ended.
    """

    run: str | None = None
    output: str | None = None
    rounds: int | None = None
    planned: int | None = None
    epsilon: float | None = None
    budget: float | None = None
    rows: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    ended: str | None = None
    error: str | None = None


def progressed(log: Iterable[str]) -> Progressed:
    """Read the lines of a log; lines that are not structured are passed over."""
    state = Progressed()
    for line in log:
        found = logs.read(line)
        if found is None:
            continue
        state.run = found.get("run", state.run)
        match found.get("event"):
            case "started":
                info = found.get("info") or {}
                state.output, state.planned, state.budget = info.get("output"), info.get("rounds"), info.get("budget")
                state.rounds = info.get("first_round")
            case "row":
                metrics = found.get("metrics") or {}
                state.rounds, state.epsilon = found.get("round"), metrics.get("privacy/epsilon", state.epsilon)
                state.rows = [*state.rows, found["message"]][-_SHOWN_ROWS:]
            case "ended":
                summary = found.get("summary") or {}
                state.ended, state.rounds = summary.get("status"), summary.get("rounds", state.rounds)
            case "error":
                state.error = found["message"]
            case "note" | None if found.get("level") in ("WARNING", "ERROR", "CRITICAL"):
                state.faults.append(found["message"].splitlines()[0])
    return state


@dataclass
class Health:
    """The health of a job at one moment.

    Attributes:
        job: id of the job.
        status: Ray's status of the job.
        message: Ray's message on the status.
        started: start of the job in Unix seconds.
        ended: end of the job in Unix seconds.
        name: name of the run.
        output: where the run's files are.
        run: what the job's log says.
        actors: number of the run's actors by class and state; None if the cluster did not answer.
        driver: whether the run's driver actor is alive; it may outlive the job.
    """

    job: str
    status: str
    message: str
    started: float | None
    ended: float | None
    name: str
    output: str | None
    run: Progressed
    actors: dict[str, dict[str, int]] | None
    driver: bool

    @property
    def advice(self) -> str:
        """The suggested next step."""
        again = "submit the same config and output again to"
        if self.status == JobStatus.PENDING:
            return "it waits for a node to take it; see `ray status` on the head"
        if self.status == JobStatus.RUNNING:
            return f"fedray jobs logs {self.job} --follow, fedray jobs stop {self.job}"
        over = self.run.ended is not None or self.run.error is not None  # the driver stays for a moment, for its followers
        if self.driver and not over:
            return f"the run's driver is alive all the same: {again} follow it"
        if self.status == JobStatus.SUCCEEDED or self.run.ended in ("completed", "budget_reached"):
            return f"fedray report {self.output}" if self.output else "nothing"
        return f"{again} continue after the last checkpoint"

    def data(self) -> dict[str, Any]:
        """Return the health as JSON data."""
        return asdict(self) | {"advice": self.advice}


def examine(client: Client, job_id: str) -> Health:
    """Examine a job once; no wait is longer than a request's limit.

    Raises:
        ConfigError: no such job exists.
        FedrayError: the cluster does not answer.
    """
    job: JobDetails = client.get_job_info(job_id)
    known = job.metadata or {}
    try:
        run = progressed(client.get_job_logs(job_id).splitlines())
    except (FedrayError, RuntimeError):  # the log lies on the node that ran the job, which may be lost
        run = Progressed()
    output = known.get(OUTPUT) or run.output
    actors, driver = _actors(client.get_address(), job.job_id, output)
    return Health(
        job_id,
        job.status.value,
        job.message or "",
        _seconds(job.start_time),
        _seconds(job.end_time),
        known.get(NAME) or run.run or "-",
        output,
        run,
        actors,
        driver,
    )


def _actors(address: str, ray_job: str | None, output: str | None) -> tuple[dict[str, dict[str, int]] | None, bool]:
    """Return the number of the run's actors by class and state, and whether its driver is alive.

    The actors belong to the Ray job that started the driver. That is an earlier job if this one found the driver at work.
    """
    try:
        found = list_actors(
            address=address, filters=[("ray_namespace", "=", NAMESPACE)], limit=10_000, timeout=15, raise_on_missing_output=False
        )
    except (RayStateApiException, RayError, RuntimeError, OSError):
        return None, False
    drivers = [a for a in found if output and a.name == driver_name(output)]
    jobs = {ray_job, *(a.job_id for a in drivers if a.state != "DEAD")}
    counts: dict[str, Counter[str]] = {}
    for actor in found:
        if actor.job_id in jobs:
            counts.setdefault(actor.class_name, Counter())[actor.state.lower()] += 1
    return {name: dict(states) for name, states in sorted(counts.items())}, any(a.state == "ALIVE" for a in drivers)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def health_text(health: Health) -> str:
    """Return the health as text."""
    run = health.run
    rows = [("job", f"{health.job}  {health.status.lower()}" + (f", the run {run.ended.replace('_', ' ')}" if run.ended else ""))]
    if health.status == JobStatus.FAILED or run.error:
        rows.append(("why", run.error or (health.message.strip().splitlines() or ["unknown"])[0]))
    rows.append(("started", _clock(health.started) + (f", ended {_clock(health.ended)}" if health.ended else "")))
    if run.rounds is not None:
        rows.append(("rounds", f"{run.rounds}" + (f" of {run.planned}" if run.planned is not None else "")))
    if run.epsilon is not None:
        rows.append(("epsilon", rounded_up(run.epsilon) + (f" of {run.budget:g}" if run.budget is not None else "")))
    rows += [("last" if i == 0 else "", line) for i, line in enumerate(run.rows)]
    if run.rounds is None:
        rows.append(("log", "says nothing of rounds yet (or is not structured: FEDRAY_LOG=json)"))
    shown = run.faults[-_SHOWN_FAULTS:]
    rows.append(
        ("faults", f"{len(run.faults)} noted" + (f", the last {len(shown)}:" if len(shown) < len(run.faults) else ":" if shown else ""))
    )
    rows += [("", line) for line in shown]
    rows.append(("actors", _actors_text(health.actors)))
    rows.append(("output", health.output or "unknown"))
    rows.append(("next", health.advice))
    return "\n".join(f"{label:<8} {value}".rstrip() for label, value in rows)


def _actors_text(actors: Mapping[str, Mapping[str, int]] | None) -> str:
    if actors is None:
        return "the cluster did not tell"
    return "; ".join(f"{name} {', '.join(f'{n} {state}' for state, n in states.items())}" for name, states in actors.items()) or "none"


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ", timespec="seconds")


def jobs_text(jobs: Sequence[JobDetails]) -> str:
    """Return a table of jobs as text, newest first."""
    rows = [("id", "name", "status", "started", "output")]
    for job in sorted((j for j in jobs if j.submission_id), key=lambda j: -(j.start_time or 0)):
        known = job.metadata or {}
        rows.append(
            (job.submission_id, known.get(NAME, "-"), job.status.value.lower(), _clock(_seconds(job.start_time)), known.get(OUTPUT, "-"))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
