"""The ``fedray`` command: parses arguments, calls the package, prints results."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fedray import (
    __version__,
    cli_agreed,
    cli_compare,
    cli_encryption,
    cli_federation,
    cli_identity,
    cli_jobs,
    cli_lineage,
    cli_list,
    cli_promote,
    cli_query,
    cli_silo,
    cli_sweep,
    cli_verify,
    cli_withdraw,
    credentials,
    logs,
    outlets,
)
from fedray.errors import FedrayError, Stopped, readable

#: Exit code for each status of a run. A run that a signal has stopped ends with 128 plus the signal's number, as in a shell.
EXIT = {"completed": 0, "budget_reached": 3, "failed": 1}


class _Command(click.Group):
    """Prints errors as one sentence and ends with their exit code; ``--debug`` shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedrayError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(logs.error(f"fedray: {error}"), err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(logs.error("fedray: ended by Ctrl-C."), err=True)
            ctx.exit(128 + signal.SIGINT)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            lines = str(error).strip().splitlines() or [""]
            click.echo(
                logs.error(f"fedray: unexpected {type(error).__name__}: {readable(lines[-1])} (fedray --debug shows where)"), err=True
            )
            ctx.exit(1)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedray")
@click.option("--debug", is_flag=True, help="Show tracebacks and every log line.")
def cli(debug: bool) -> None:
    """Federated learning with differential privacy, on Ray."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("fedray").setLevel(level)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--output", help="Output directory; default runs/NAME (runs/NAME-2, ... where that exists).")
@click.option("--resume", is_flag=True, help="Continue the run in --output (default: the newest of this name).")
@click.option("--profile", is_flag=True, help="Show where the rounds' time went; profile.json is for a trace viewer.")
def run(config: Path, overrides: tuple[str, ...], output: str | None, resume: bool, profile: bool) -> None:
    """Train: fedray run CONFIG [KEY=VALUE ...]. Starts a local Ray where there is no cluster."""
    from fedray.configfile import load_config

    credentials.load()
    resolved = load_config(config, overrides)
    logs.setup(resolved.name)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray import experiment
    from fedray.tracking.closing_words import print_summary
    from fedray.tracking.structured import JsonProgress
    from fedray.tracking.terminal import Progress

    stopped_by: list[int] = []
    with JsonProgress(resolved.name) if logs.structured() else Progress() as progress:

        def listen(kind: str, value: Any) -> None:
            if kind == "joining":
                text = f"{resolved.name}: {value}"
                progress.joining(text) if isinstance(progress, JsonProgress) else click.echo(logs.shown(text, sys.stderr), err=True)
            elif kind == "started":
                progress.start(value)
                for warning in value["warnings"]:
                    progress.note(warning)
            elif kind == "row":
                progress.row(value)
            elif kind == "note":
                progress.note(value)
            elif kind == "fault":
                progress.fault(value)
            elif kind == "signal":
                stopped_by.append(value)
            if outlets.lost():
                click.echo("nobody reads standard output any more; the run goes on without it", err=True)

        try:
            result = experiment.run(resolved, overrides=overrides, callbacks=[listen], output=output, resume=resume, profile=profile)
        except Stopped as stopped:  # before the first round
            click.echo(logs.error(f"fedray: {stopped}"), err=True)
            sys.exit(128 + (stopped_by[0] if stopped_by else 15))
    end = progress.ended if isinstance(progress, JsonProgress) else print_summary
    end(result.summary, result.output, f"{_program()} ui {_shown(result.output)}")
    if result.summary.get("profile") and not logs.structured():
        from fedray.experiment.profile import table

        click.echo("\nWhere a round's time went\n" + table(result.summary["profile"]))
    code = EXIT.get(result.status)
    sys.exit(128 + (stopped_by[0] if stopped_by else 15) if code is None else code)


for _command in (
    *(cli_agreed.register, cli_agreed.opening, cli_compare.compare, cli_encryption.make_encryption_key, cli_identity.make_identity),
    *(cli_jobs.submit, cli_jobs.jobs, cli_list.list_parts, cli_promote.promote, cli_query.ask_query, cli_sweep.sweep_command),
    *(cli_federation.federation, cli_withdraw.extend(cli_silo.silo), cli_verify.verify, cli_lineage.lineage),
):
    cli.add_command(_command)


@cli.command("plan")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture: epsilon over rounds, and what would change it."
)
@click.option(
    "--clients", default=0, help="Tell up to so many clients apart by their records; else those that are charged alike share a line."
)
@click.option(
    "--nodes", default=1, show_default=True, type=click.IntRange(min=1), help="Nodes of the cluster, for the traffic between them."
)
def show_plan(config: Path, overrides: tuple[str, ...], as_json: bool, plot: Path | None, clients: int, nodes: int) -> None:
    """Train nothing: what a run would spend, on whom, and whether it fits. Exit code 3 where a budget would be exceeded."""
    from fedray.configfile import is_query, load_config
    from fedray.errors import BudgetReached, ConfigError

    if is_query(config):
        cli_query.price(config, overrides, as_json)
        return
    resolved = load_config(config, overrides)
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray.planning.planner import make_plan
    from fedray.planning.planner_text import plan_text
    from fedray.planning.preparation import prepare

    prepared = prepare(resolved)
    plan = make_plan(prepared, curves=as_json or plot is not None, nodes=nodes)
    prices = cli_sweep.prices(prepared) if resolved.sweep is not None else None
    if as_json:
        click.echo(json.dumps(plan if prices is None else plan | {"sweep": prices.figures}, indent=2))
    else:
        click.echo("\n".join([plan_text(plan, clients, _width()), *([] if prices is None else ["", *prices.lines])]))
    if plot is not None:
        from fedray.tracking.charts import draw_plan

        if not plan["lines"]:
            raise ConfigError("--plot: this run spends no privacy, so there is nothing to draw; leave --plot out.")
        try:
            draw_plan(plot, plan)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {plot}: cannot be written ({error}); name a .png file in a directory that exists.") from None
    refused = plan["refusal"] or (prices is not None and prices.refusal)
    if refused:
        raise BudgetReached(refused)


def _width() -> int | None:
    """Characters of a line of the terminal; None where the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@cli.command("config")
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1)
@click.option("--schema", is_flag=True, help="Print the JSON Schema, for editors.")
def show_config(config: Path | None, overrides: tuple[str, ...], schema: bool) -> None:
    """Print a config with all defaults filled in, or the schema."""
    from fedray import configfile

    if schema:
        click.echo(json.dumps(configfile.schema(), indent=2))
    elif config is not None and configfile.is_query(config):
        click.echo(cli_query.resolved_text(config, overrides), nl=False)
    elif config is not None:
        click.echo(configfile.dump_config(configfile.load_config(config, overrides)), nl=False)
    else:
        raise click.UsageError("give a CONFIG, or --schema")


@cli.group(commands=[cli_withdraw.withdraw_client, cli_withdraw.readmit_client])
def ledger() -> None:
    """Read and check privacy ledgers, and withdraw clients in them."""


@ledger.command("show")
@click.argument("path")
@click.option("--delta", type=float, help="Delta of the figures; default: the delta noted in the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ledger_show(path: str, delta: float | None, as_json: bool) -> None:
    """What was spent, by client, recomputed from the entries. PATH: a ledger, a directory of them, a run, or s3://bucket/prefix."""
    from fedray.privacy.ledger.inspect import describe, table

    with _opened_ledger(path) as (place, named):
        report = describe(place, delta)
        click.echo(named(json.dumps(report, indent=2) if as_json else table(report)))


@ledger.command("verify")
@click.argument("path")
def ledger_verify(path: str) -> None:
    """Check every ledger at PATH (as for show): chain, commits, receipts; of a run also that its figures follow from the entries."""
    from fedray.privacy.ledger.inspect import verify_all

    with _opened_ledger(path) as (place, named):
        for line in verify_all(place):
            click.echo(named(line))


@cli.command()
@click.argument("target")
@click.argument("overrides", nargs=-1)
@click.option("--canaries", default=1000, show_default=True, help="Canary records.")
@click.option("--seed", default=0, show_default=True, help="Seed of what the audit draws; noise has none.")
@click.option("--output", type=click.Path(path_type=Path), help="Directory; default RUN_DIR/audit, or runs/NAME-audit for a config.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--attack", default="all", show_default=True, help="all, checks, canaries, membership, lira or inversion.")
@click.option(
    "--open", "opens", is_flag=True, help="Instead: open records of a run's registered data, and check them (see fedray opening)."
)
@click.option("--records", type=int, help="With --open: how many records of each client; default: all.")
@click.pass_context
def audit(
    context: click.Context,
    target: str,
    overrides: tuple[str, ...],
    canaries: int,
    seed: int,
    output: Path | None,
    as_json: bool,
    attack: str,
    opens: bool,
    records: int | None,
) -> None:
    """Attack a CONFIG, or a finished run's directory: a lower bound on epsilon beside the proven one."""
    if opens or records is not None:
        with _opened(target) as (place, _):
            cli_agreed.open_run(context, place, opens, records)
            return
    sys.path.insert(0, str(Path.cwd()))  # python: parts beside the user's config
    from fedray.audit import report, run

    with _opened(target) as (place, named):
        found = run.audit(run.AuditRequest(place, overrides, attack, canaries, seed, output))
        pictures = report.write(found)
        click.echo(json.dumps(found.data(), indent=2) if as_json else found.table())
        if found.config.tracking.enabled:
            from fedray.reporting.report_page import report_pages

            click.echo(report.send(found, pictures, report_pages(place) if place.is_dir() else []), err=True)
        click.echo(named(f"audit.json and pictures are in {_shown(found.output)}"), err=True)
    report.conclude(found)


@cli.command()
@click.argument("run_dir")
@click.option("--output", type=click.Path(path_type=Path), help="The HTML file; default RUN_DIR/report.html. The Markdown lies beside it.")
def report(run_dir: str, output: Path | None) -> None:
    """Write a run as one page for a reviewer, HTML and Markdown: what was run, results, privacy statement, ledger, audit."""
    from fedray.reporting.report_page import write_report

    with _opened(run_dir) as (place, named):
        for path in (cli_query.report if cli_query.asked_in(place) else write_report)(place, output):
            click.echo(named(_shown(path)))


@cli.command()
@click.argument("run_dir")
@click.option("--uri", help="Send to another MLflow store than the run's own.")
def sync(run_dir: str, uri: str | None) -> None:
    """Send MLflow whatever it lacks of a run (its server was away, or the driver died)."""
    from fedray.experiment.served import served_model
    from fedray.reporting.report_page import report_pages
    from fedray.runfiles import RunFiles
    from fedray.tracking.mlflow_tracker import sync as send
    from fedray.whole import check, read_config

    with _opened(run_dir) as (place, named):
        if cli_query.asked_in(place):
            click.echo(named(cli_query.sync(place, uri)))
            return
        files = RunFiles(place)
        check(files)
        builder = (lambda: served_model(files, read_config(files))) if files.model.exists() and files.config.exists() else None
        click.echo(named(send(place, model=builder, uri=uri, pages=lambda: report_pages(place))))


@cli.command()
@click.argument("run_dir", required=False)
@click.option("--uri", help="Tracking URI; default: that of RUN_DIR, else MLFLOW_TRACKING_URI, else runs/mlflow.db.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
@click.option("--open", "opens", is_flag=True, help="Open the run's page in the browser.")
def ui(run_dir: str | None, uri: str | None, host: str, port: int, opens: bool) -> None:
    """Open the MLflow UI over the store that runs log to."""
    from fedray.config import Tracking
    from fedray.tracking.journal import State
    from fedray.tracking.mlflow_store import resolve_uri, unmasked
    from fedray.tracking.ui import ui_command, ui_links
    from fedray.tracking.uiserver import serve

    state, runs = None, Path("runs")
    if run_dir is not None:
        with _opened(run_dir) as (place, _):
            state, runs = State.load(place), place.parent
    target = uri or (unmasked(state.tracking_uri) if state else resolve_uri(Tracking(), runs))
    command = ui_command(target, host=host, port=port)
    links = {} if state is None else ui_links(state.tracking_uri, state.experiment_id, state.run_id, port)
    sys.exit(serve(command, host, port, links, click.echo, opens))


@contextmanager
def _opened(run: str) -> Iterator[tuple[Path, Callable[[str], str]]]:
    """Yield a run's directory, or a copy from the object store, and a function that replaces the copy's paths in a text by addresses."""
    from fedray.stores.mirror import local_copy
    from fedray.stores.object_path import location

    where = location(run, "RUN_DIR")
    with local_copy(where) as place:
        if isinstance(where, Path):
            yield place, str
            return
        copied = re.compile(rf"{re.escape(str(place))}(?:/([\w.%/-]*\w))?")
        yield place, lambda text: copied.sub(lambda m: str(where / m[1] if m[1] else where), text)


@contextmanager
def _opened_ledger(where: str) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Yield as :func:`_opened` for a run, and a path or an address of a ledger as it is."""
    from fedray.stores.object_path import ObjectPath, location
    from fedray.stores.s3 import Bucket

    address = location(where, "PATH")
    if isinstance(address, ObjectPath) and Bucket(address, patience=0.0).get("config.yaml") is not None:
        with _opened(where) as (place, named):
            yield str(place), named
    else:
        yield where, str


def _program() -> str:
    """Return the command by which this program can be called again."""
    if Path(sys.argv[0]).name != "fedray":
        return "python -m fedray"
    found = shutil.which("fedray")
    return "fedray" if found is not None and Path(found).samefile(sys.argv[0]) else _shown(Path(sys.argv[0]).absolute())


def _shown(path: Path | str) -> str:
    if isinstance(path, str):  # an address in an object store
        return path
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # the path lies elsewhere, or the working directory was deleted
        return str(path)


def main() -> None:
    """Entry point of the console script."""
    outlets.forgive()
    try:
        cli(prog_name="fedray")
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:  # a further Ctrl-C would interrupt the end of the process
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise
