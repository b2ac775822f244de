"""``fedray submit`` and ``fedray jobs``: runs as jobs of a Ray cluster."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from fedray import credentials, logs, outlets
from fedray.errors import ConfigError

_address = click.option(
    "--address", help="The cluster's dashboard, http://HEAD:8265; default RAY_API_SERVER_ADDRESS, or an http RAY_ADDRESS."
)
_raw = click.option("--raw", is_flag=True, help="Print log lines as they are (JSON), for machines.")


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@_address
@click.option("--output", help="Where the run's files go: a directory that all nodes share, or a URI. Default $FEDRAY_OUTPUT/NAME.")
@click.option(
    "--working-dir", type=click.Path(path_type=Path), default=".", show_default=True, help="Shipped; the job and its actors start there."
)
@click.option("--py-module", "modules", multiple=True, type=click.Path(path_type=Path), help="Directory of a Python package to ship.")
@click.option("--pip", multiple=True, help="Requirement to install on the nodes.")
@click.option("--env", "variables", multiple=True, help="NAME=VALUE for the job's environment, which everybody sees.")
@click.option("--secret", "secrets", multiple=True, help="NAME=file:/path/on/the/nodes; only the reference travels.")
@click.option("--name", help="Begins the job's id; default the config's name.")
@click.option("--profile", is_flag=True, help="Write where the rounds' time went: profile.txt, and profile.json for a trace viewer.")
@click.option("--no-wait", is_flag=True, help="Do not follow the log.")
@_raw
def submit(
    config: Path,
    overrides: tuple[str, ...],
    address: str | None,
    output: str | None,
    working_dir: Path,
    modules: tuple[Path, ...],
    pip: tuple[str, ...],
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    name: str | None,
    profile: bool,
    no_wait: bool,
    raw: bool,
) -> None:
    """Train as a job of a Ray cluster: ships the working directory, follows the log, ends with the run's exit code.

    The same output again follows the job that is at work there, or continues the run where it stopped.
    """
    from fedray.configfile import dump_config, load_config

    token = credentials.use_ray_token()  # before anything imports Ray
    references = dict(credentials.parse_reference(text) for text in secrets)
    environment = dict(credentials.parse_variable(text) for text in variables)
    from fedray.experiment.origin import job_variables

    environment = job_variables() | environment
    resolved = load_config(config, overrides)
    target = _dashboard(address)
    root = working_dir.absolute()
    packages = [m.absolute() for m in modules]
    sys.path[:0] = [str(root), *(str(p.parent) for p in packages)]  # python: parts
    from fedray.jobs import job_client
    from fedray.jobs import submission as jobs

    jobs.refuse_passing_ledgers(resolved.model_dump())
    where, inside = jobs.choose_output(resolved.name, output), _inside(config, root)
    submission = jobs.Submission(
        name or resolved.name,
        where,
        hashlib.sha256(dump_config(resolved).encode()).hexdigest(),
        jobs.make_entrypoint(inside, overrides, where, profile),
        jobs.make_runtime_env(root, packages, pip, environment, references, lambda text: click.echo(text, err=True), inside),
    )
    credentials.refuse_password(str(config), dump_config(resolved))
    _check(resolved, pip)
    client = job_client.Client(target, token)
    job, new = jobs.start(client, submission)
    again = f"--address {target}"
    click.echo(f"{'submitted' if new else 'at work on this output already:'} job {job}, output {where}", err=True)
    if no_wait:
        click.echo(job)
        click.echo(
            f"  fedray jobs logs {job} --follow {again}\n  fedray jobs show {job} {again}\n  fedray jobs stop {job} {again}", err=True
        )
        return
    sys.exit(_follow(client, job, _teller(raw), again))


@click.group()
def jobs() -> None:
    """Jobs of a Ray cluster: list, show, logs, stop."""


@jobs.command("list")
@_address
def list_jobs(address: str | None) -> None:
    """All jobs of the cluster, newest first."""
    client = _connect(address)
    from fedray.jobs.job_health import jobs_text

    click.echo(jobs_text(client.list_jobs()))


@jobs.command()
@click.argument("job")
@_address
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(job: str, address: str | None, as_json: bool) -> None:
    """A run's health: status, rounds, epsilon, faults, actors, where its output is, and what to do next."""
    client = _connect(address)
    from fedray.jobs.job_health import examine, health_text

    health = examine(client, job)
    click.echo(json.dumps(health.data(), indent=2) if as_json else health_text(health))


@jobs.command("logs")
@click.argument("job")
@_address
@click.option("--follow", is_flag=True, help="Go on until the job ends; exit with its code.")
@_raw
def show_logs(job: str, address: str | None, follow: bool, raw: bool) -> None:
    """A job's log."""
    client, tell = _connect(address), _teller(raw)
    if follow:
        sys.exit(_follow(client, job, tell, f"--address {_dashboard(address)}"))
    with suppress(_NobodyReads):
        for line in client.get_job_logs(job).splitlines():
            tell(line)


@jobs.command()
@click.argument("job")
@_address
def stop(job: str, address: str | None) -> None:
    """Stop a job after a checkpoint."""
    client = _connect(address)
    from fedray.jobs.job_client import STOP_WAIT
    from fedray.jobs.job_client import stop as stop_job
    from fedray.jobs.job_health import examine

    if not client.get_job_info(job).status.is_terminal():
        click.echo(f"waiting for job {job} to write its checkpoint and end (Ray kills it after {STOP_WAIT} s) ...", err=True)
    ended = stop_job(client, job)
    health = examine(client, job)
    rounds = f"; round {health.run.rounds} is the last that is kept" if health.run.rounds is not None else ""
    click.echo(f"job {job} {ended.status.value.lower()}{rounds}; next: {health.advice}")


def _connect(address: str | None) -> Any:
    token = credentials.use_ray_token()  # before anything imports Ray
    from fedray.jobs.job_client import Client

    return Client(_dashboard(address), token)


def _dashboard(given: str | None) -> str:
    """Return the address of the cluster's Jobs API."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not address.startswith(("http://", "https://")):
        raise ConfigError("--address: give the cluster's dashboard, http://HEAD:8265 (or set RAY_API_SERVER_ADDRESS).")
    return address.rstrip("/")


def _inside(config: Path, root: Path) -> str:
    """Return the config's path relative to the job's working directory."""
    try:
        return config.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise ConfigError(
            f"{config}: lies outside --working-dir {root}, which is all that is shipped; name a directory that holds it."
        ) from None


def _check(config: Any, pip: tuple[str, ...]) -> None:
    """Check the parts that the config names, if they can be imported here."""
    from fedray.planning.combinations import check_only

    try:
        check_only(config)
    except ConfigError as error:
        if not (isinstance(error.__cause__, ModuleNotFoundError) and pip):
            raise
        click.echo(f"not checked here: {error}", err=True)  # --pip may install the missing module


class _NobodyReads(Exception):
    """Standard output was closed, so nobody follows the log any more."""


def _teller(raw: bool) -> Callable[[str], None]:
    def tell(line: str) -> None:
        click.echo(line if raw else logs.render(line))
        if outlets.gone():
            raise _NobodyReads

    return tell


def _follow(client: Any, job: str, tell: Callable[[str], None], again: str) -> int:
    """Follow a job's log to its end; returns the exit code. Ctrl-C or a closed output ends the following, but not the job."""
    from fedray.jobs.job_client import exit_code, follow

    try:
        ended = follow(client, job, tell)
    except (KeyboardInterrupt, _NobodyReads) as end:
        click.echo(f"\njob {job} goes on.\n  fedray jobs logs {job} --follow {again}\n  fedray jobs stop {job} {again}", err=True)
        return 128 + (signal.SIGINT if isinstance(end, KeyboardInterrupt) else signal.SIGPIPE)
    code = exit_code(ended)
    click.echo(f"job {job} {ended.status.value.lower()}" + (f", exit code {code}" if code else ""), err=True)
    return code
