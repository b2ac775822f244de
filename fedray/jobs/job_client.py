"""A client of a Ray cluster's Jobs API: requests with time limits, following a job's log, stopping a job."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from fedray.errors import ConfigError, FedrayError, first_line

#: Seconds that Ray gives a stopped job to write its checkpoint.
STOP_WAIT = 60

#: Seconds to connect, and seconds to wait for the answer to one request.
_LIMITS = (10.0, 60.0)

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they log every upload and every closed connection
_QUIET = 20.0  # seconds without a line of a log after which the job's status is asked
_STALE = 300.0  # seconds without a line after which the log is requested anew


class Unreachable(FedrayError):
    """The cluster's Jobs API does not answer."""


class Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, with a limit on every wait and with errors of one sentence.

    Args:
        address: the dashboard's address, ``http://HEAD:8265``.
        token: where the token comes from, in words; None without a token.

    Raises:
        ConfigError: the token is missing or wrong.
        Unreachable: nothing answers at the address.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self._shown, self._token = address, token
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers this variable to the argument
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            response = super()._do_request(method, endpoint, **({"timeout": _LIMITS} | options))
        except AuthenticationError as error:
            remedy = "set RAY_AUTH_TOKEN_PATH to a file that holds it (and RAY_AUTH_MODE, where it is set, to token)."
            if "required" in first_line(error):
                raise ConfigError(f"the cluster at {self._shown} wants its token, and was given none; {remedy}") from None
            raise ConfigError(f"the cluster at {self._shown} refuses the token of {self._token}; {remedy}") from None
        except requests.RequestException as error:
            raise Unreachable(
                f"no Jobs API answers at {self._shown} ({_why(error)}); give the dashboard's address, usually port 8265."
            ) from None
        if response.status_code == 404 and re.fullmatch(r"/api/jobs/[^/]+(/stop|/logs)?", endpoint):
            raise ConfigError(f"there is no job {endpoint.split('/')[3]} at {self._shown}; see fedray jobs list.")
        return response


def _why(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "timed out"
    text = str(error)
    return next(
        (w for w in ("Connection refused", "Name or service not known", "No route to host", "Network is unreachable") if w in text),
        type(error).__name__,
    )


def exit_code(job: JobDetails) -> int:
    """Return the exit code for a process that followed a job to its end: the run's own, or 143 if the job was stopped."""
    if job.status == JobStatus.STOPPED:
        return 143
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code
    return 1 if not code else 128 - code if code < 0 else int(code)


class Lines:
    """Joins the pieces of a log to lines, and passes each line on once although the log may be read from its beginning several times."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._told, self._skip, self._rest = tell, 0, 0, ""

    def again(self) -> None:
        """Expect the log from its beginning."""
        self._skip = self._told

    def feed(self, piece: str) -> None:
        """Take the next piece of the log."""
        fresh = piece[self._skip :]
        self._skip = max(0, self._skip - len(piece))
        self._told += len(fresh)
        *whole, self._rest = (self._rest + fresh).split("\n")
        for line in whole:
            self._tell(line)

    def close(self) -> None:
        """Pass the last line on, after the log's end."""
        if self._rest:
            self._tell(self._rest)
            self._rest = ""


def follow(client: Client, job_id: str, tell: Callable[[str], None], patience: float = 300.0) -> JobDetails:
    """Pass a job's log on, line by line, until the job ends; a lost connection is made again without repeating lines.

    Args:
        client: a :class:`Client`.
        job_id: id of the job.
        tell: called with each line.
        patience: seconds without an answer of the cluster after which following ends.

    Raises:
        Unreachable: the cluster did not answer for ``patience`` seconds; the job may continue.
    """
    return asyncio.run(_follow(client, job_id, Lines(tell), patience))


async def _follow(client: Client, job_id: str, lines: Lines, patience: float) -> JobDetails:
    heard, pause = time.monotonic(), 0.5
    while True:
        lines.again()
        try:
            await _tail(client, job_id, lines)
            job = client.get_job_info(job_id)
            heard, pause = time.monotonic(), 0.5
            if job.status.is_terminal():
                break
        except (Unreachable, RuntimeError, aiohttp.ClientError, OSError) as error:
            if time.monotonic() - heard > patience:
                raise Unreachable(
                    f"the cluster has not answered for {patience:g} s ({first_line(error)}); the job may go on: "
                    f"fedray jobs logs {job_id} --follow"
                ) from None
            pause = min(2 * pause, 10.0)
        await asyncio.sleep(pause)
    try:  # lines that were written after the last connection was lost
        lines.again()
        lines.feed(client.get_job_logs(job_id))
    except (FedrayError, RuntimeError):
        pass  # the log lies on the node that ran the job, which may be lost
    lines.close()
    return job


async def _tail(client: Client, job_id: str, lines: Lines) -> None:
    """Follow one connection until it or the job ends, or until no line has come for so long that the connection may be broken."""
    async with aclosing(client.tail_job_logs(job_id)) as pieces:
        pending = asyncio.ensure_future(anext(pieces))
        quiet = 0.0
        try:
            while quiet < _STALE:
                done, _ = await asyncio.wait({pending}, timeout=_QUIET)
                if done:
                    lines.feed(pending.result())
                    pending, quiet = asyncio.ensure_future(anext(pieces)), 0.0
                elif client.get_job_info(job_id).status.is_terminal():
                    return
                else:
                    quiet += _QUIET
        except StopAsyncIteration:
            return
        finally:
            pending.cancel()
            await asyncio.wait({pending})


def stop(client: Client, job_id: str, patience: float = STOP_WAIT + 30.0) -> JobDetails:
    """Ask a job to stop after a checkpoint, and wait until it has ended.

    Raises:
        FedrayError: the job did not end in ``patience`` seconds.
    """
    client.stop_job(job_id)
    limit = time.monotonic() + patience
    while True:
        job = client.get_job_info(job_id)
        if job.status.is_terminal():
            return job
        if time.monotonic() > limit:
            waits = " (Ray cannot stop a job before a node has taken it)" if job.status == JobStatus.PENDING else ""
            raise FedrayError(
                f"job {job_id} is still {job.status.value} {patience:g} s after it was told to stop{waits}; see fedray jobs show {job_id}."
            )
        time.sleep(0.5)
