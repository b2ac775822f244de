"""Submits runs as jobs of a Ray cluster, or finds the job that is already at work on an output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray import credentials, logs
from fedray.errors import ConfigError, FedrayError, PrivacyRefusal, first_line
from fedray.jobs import shipment
from fedray.jobs.job_client import STOP_WAIT, Client
from fedray.privacy.ledger.location import RELATIVE

#: Keys of a job's metadata.
NAME, OUTPUT, CONFIG = "fedray.name", "fedray.output", "fedray.config"


@dataclass(frozen=True)
class Submission:
    """A run as a job.

    Attributes:
        name: beginning of the job's id; by default the config's name.
        output: where the run's files go: a directory that the nodes share, or a URI.
        config: SHA-256 of the resolved config, hexadecimal.
        entrypoint: the job's shell command.
        runtime_env: Ray's runtime environment of the job.
    """

    name: str
    output: str
    config: str
    entrypoint: str
    runtime_env: Mapping[str, Any]

    @property
    def stem(self) -> str:
        """The common beginning of the ids of all jobs of this run."""
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", self.name).strip("-.") or "run"
        return f"{slug}-{hashlib.sha256(self.output.encode()).hexdigest()[:8]}"

    @property
    def metadata(self) -> dict[str, str]:
        """The job's metadata, which the cluster keeps."""
        return {NAME: self.name, OUTPUT: self.output, CONFIG: self.config}


def choose_output(name: str, given: str | None) -> str:
    """Return the output of a job: ``given``, or ``$FEDRAY_OUTPUT/NAME``.

    Raises:
        ConfigError: neither is given, or the output is a relative path, which would be another directory on each node.
    """
    base = os.environ.get("FEDRAY_OUTPUT")
    output = given or (f"{base.rstrip('/')}/{name}" if base else None)
    if output is None:
        raise ConfigError(
            "--output: name a directory on storage that all nodes share, or a URI such as s3://bucket/prefix (or set FEDRAY_OUTPUT to "
            "where runs go): a job may be continued on another node, where its own disk is not."
        )
    credentials.refuse_password("--output", output)
    if "://" in output:
        return output.rstrip("/")
    if not output.startswith("/"):
        raise ConfigError(
            f"--output {output}: must be an absolute path on storage that all nodes share, or a URI; a job has no directory of its own."
        )
    return os.path.normpath(output)


def refuse_passing_ledgers(settings: Any, path: str = "") -> None:
    """Refuse a config with a ledger at a relative path: it would lie in the job's own directory and be lost when the job ends.

    Args:
        settings: the config as plain data, or a part of it.
        path: dotted key of that part.

    Raises:
        PrivacyRefusal: a ledger is neither ``run``, nor an absolute path, nor an address.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "ledger" and isinstance(value, str) and value != "run" and "://" not in value and not value.startswith("/"):
                raise PrivacyRefusal(
                    f"{where}: '{value}' leads into the job's own directory, which is gone when the job ends, and with it what was charged; "
                    "give an absolute path on a durable volume of the nodes, or s3://bucket/prefix.",
                    RELATIVE,
                )
            refuse_passing_ledgers(value, where)
    elif isinstance(settings, list | tuple):
        for index, value in enumerate(settings):
            refuse_passing_ledgers(value, f"{path}.{index}")


def make_entrypoint(config: str, overrides: Sequence[str], output: str, profile: bool = False) -> str:
    """Return the job's shell command, which continues the run at ``output`` if there is one, so that the command may be repeated.

    Raises:
        ConfigError: an override holds a password.
    """
    for override in overrides:
        credentials.refuse_password(override.partition("=")[0], override)
    flags = ["--resume", *(["--profile"] if profile else [])]
    return shlex.join(["python", "-m", "fedray", "run", config, *overrides, "--output", output, *flags])


def make_runtime_env(
    working_dir: Path,
    modules: Sequence[Path],
    pip: Sequence[str],
    variables: Mapping[str, str],
    secrets: Mapping[str, str],
    tell: Callable[[str], None] = lambda text: None,
    config: str | None = None,
) -> dict[str, Any]:
    """Return Ray's runtime environment of a job.

    Args:
        working_dir: directory to ship, in which the job and its actors start.
        modules: directories of Python packages to ship.
        pip: requirements to install on the nodes.
        variables: environment variables by name.
        secrets: references to secrets by name.
        tell: called with one sentence for each directory of which files are not shipped because of their names.
        config: a file that must be shipped, relative to ``working_dir``.

    Raises:
        ConfigError: a directory is missing or too large, a file in it looks like a key, or a requirement holds a password.
    """
    excludes = shipment.exclusions(working_dir)
    for flag, path in [("--working-dir", working_dir), *(("--py-module", m) for m in modules)]:
        needed = Path(config) if config is not None and flag == "--working-dir" else None
        left = shipment.check(flag, path, excludes, needed)
        if left:
            tell(f"{flag} {path}: not shipped, for their names are those of secrets: {', '.join(left)}")
    for requirement in pip:
        credentials.refuse_password("--pip", requirement)
    variables = {**variables, logs.FORM: "json", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT)}
    if secrets:
        variables[credentials.SECRETS] = json.dumps(dict(secrets))
    env: dict[str, Any] = {"working_dir": str(working_dir), "excludes": excludes, "env_vars": variables}
    if modules:
        env["py_modules"] = [str(m) for m in modules]
    if pip:
        env["pip"] = list(pip)
    return env


def start(client: Client, submission: Submission) -> tuple[str, bool]:
    """Submit a job, or find the job that is at work on this output already.

    Returns:
        The job's id, and whether the job is new.

    Raises:
        ConfigError: a job with another config is at work on the output.
        FedrayError: the cluster did not accept the job.
    """
    for _ in range(3):  # another user may take the number at the same time
        jobs = [job for job in client.list_jobs() if job.submission_id]
        for job in jobs:
            known = job.metadata or {}
            if known.get(OUTPUT) == submission.output and not job.status.is_terminal():
                if known.get(CONFIG) != submission.config:
                    raise ConfigError(
                        f"--output {submission.output}: job {job.submission_id} is at work there with another config; stop it first "
                        f"(fedray jobs stop {job.submission_id}), or choose another output."
                    )
                return job.submission_id, False
        numbers = (job.submission_id.removeprefix(f"{submission.stem}-") for job in jobs)
        number = 1 + max((int(n) for n in numbers if n.isdigit()), default=0)
        try:
            return client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=f"{submission.stem}-{number}",
                runtime_env=dict(submission.runtime_env),
                metadata=submission.metadata,
            ), True
        except (RuntimeError, ValueError, OSError) as error:
            if "already exists" not in str(error):
                raise FedrayError(f"submit: the cluster did not take the job ({_last_line(error)}).") from None
    raise FedrayError(f"submit: others keep submitting {submission.stem} at the same time; try again.")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if lines else first_line(error)
