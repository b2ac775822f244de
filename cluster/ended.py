"""What a Kubernetes job ends with: ``python -m cluster.ended CODE`` after a run that ended with another exit code than 0.

KubeRay tries every failed RayJob again (``backoffLimit``), on a new cluster. That is right for what a new cluster may change (exit code 1:
a lost node, a full disk, a store that was away), and the retry resumes. It is of no use where the run would end the same way:

* 3, the privacy budget is spent: the run is over and valid, so the job has succeeded.
* 2, a wrong config or command: the job stops itself. Ray then calls it STOPPED, which is no success, and KubeRay does not try it again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

BUDGET, USAGE = 3, 2

#: Seconds to wait for the signal that ends a stopped job; Ray sends it within one or two.
PATIENCE = 60.0

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_DASHBOARD = "http://127.0.0.1:8265"  # a job's entry point runs on the head


def job_id(environment: Mapping[str, str]) -> str | None:
    """The id under which this process' job was submitted, which Ray puts into its environment; None outside of a job."""
    try:
        return str(json.loads(environment[_JOB])["metadata"]["job_submission_id"])
    except (KeyError, TypeError, ValueError):
        return None


def end(code: int, environment: Mapping[str, str], stop: Callable[[str], Any], wait: Callable[[float], None] = time.sleep) -> int:
    """The exit code of the entry point after a run that ended with ``code``.

    Where another try is of no use, the job is stopped instead, and the signal that ends this process is waited for. A job that cannot be
    stopped fails, and is tried again in vain.
    """
    if code == BUDGET:
        return 0
    own = job_id(environment)
    if code == USAGE and own is not None:
        print("the job stops itself, so that it is not tried again: it would end the same way.", file=sys.stderr, flush=True)
        try:
            stop(own)
        except Exception as error:
            print(f"the job cannot be stopped ({error}); it fails instead.", file=sys.stderr, flush=True)
        else:
            wait(PATIENCE)
    return code


def _stop(job: str) -> None:
    from fedray import credentials
    from fedray.jobs.job_client import Client

    Client(_DASHBOARD, credentials.use_ray_token()).stop_job(job)


if __name__ == "__main__":
    sys.exit(end(int(sys.argv[1]), os.environ, _stop))
