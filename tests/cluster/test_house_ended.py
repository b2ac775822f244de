"""How a job on Kubernetes ends: what may help is tried again, what cannot is not."""

from __future__ import annotations

import json

import pytest

from cluster.ended import PATIENCE, end, job_id

IN_A_JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "digits-x1", "job_name": "a"}})}


@pytest.mark.parametrize(("code", "exits", "stopped"), [(3, 0, []), (2, 2, ["digits-x1"]), (1, 1, []), (130, 130, []), (143, 143, [])])
def test_only_what_a_new_cluster_may_change_is_tried_again(code: int, exits: int, stopped: list[str]) -> None:
    told: list[str] = []
    waited: list[float] = []
    assert end(code, IN_A_JOB, told.append, waited.append) == exits
    assert told == stopped
    assert waited == [PATIENCE] * len(stopped)


def test_a_job_that_cannot_be_stopped_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(job: str) -> None:
        raise OSError("connection refused")

    assert end(2, IN_A_JOB, refuse) == 2
    assert "cannot be stopped (connection refused)" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"metadata": {}}'])
def test_outside_of_a_job_the_exit_code_stays(text: str | None) -> None:
    environment = {} if text is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": text}
    assert job_id(environment) is None
    assert end(2, environment, pytest.fail) == 2
