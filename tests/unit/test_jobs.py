"""Submitting, attaching, following and judging jobs, against a cluster that is played."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from paths import ROOT
from ray.job_submission import JobDetails, JobStatus, JobType

from fedray import credentials, logs
from fedray.cli import cli
from fedray.errors import ConfigError, FedrayError
from fedray.jobs import job_client, shipment
from fedray.jobs import submission as jobs
from fedray.jobs.job_health import Health, health_text, jobs_text, progressed

CONFIG = ROOT / "configs" / "digits.yaml"


def job(number: int, status: JobStatus, output: str = "/out", config: str = "a", **more: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=f"{submission(output).stem}-{number}",
        status=status,
        entrypoint="",
        metadata={jobs.NAME: "digits", jobs.OUTPUT: output, jobs.CONFIG: config},
        **more,
    )


def submission(output: str = "/out", config: str = "a", name: str = "digits") -> jobs.Submission:
    return jobs.Submission(name, output, config, "python -m fedray run", {})


class Played:
    """A cluster's Jobs API. ``log`` are the pieces of each connection; None breaks it off, Ellipsis lets the API be away for once."""

    def __init__(self, *known: JobDetails, log: Sequence[Sequence[Any]] = (), full: str = "") -> None:
        self.jobs = list(known)
        self.submitted: list[dict[str, Any]] = []
        self.log, self.full, self.connections = list(log), full, 0
        self.beaten = 0

    def list_jobs(self) -> list[JobDetails]:
        return self.jobs

    def submit_job(self, **options: Any) -> str:
        if self.beaten:
            self.beaten -= 1
            self.jobs.append(job(1 + len(self.jobs), JobStatus.RUNNING))
            raise RuntimeError("Request failed with status code 500: ... ValueError: Job with submission_id x already exists.")
        self.submitted.append(options)
        return str(options["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        pieces = self.log[self.connections]
        self.connections += 1
        for piece in pieces:
            if piece is None:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield piece

    def get_job_info(self, job_id: str) -> JobDetails:
        done = self.connections >= len(self.log)
        return job(1, JobStatus.SUCCEEDED if done else JobStatus.RUNNING)

    def get_job_logs(self, job_id: str) -> str:
        return self.full


# -- submitting ----------------------------------------------------------------------------------


def test_the_first_job_of_an_output_is_number_one() -> None:
    played = Played(job(4, JobStatus.RUNNING, "/other"))
    assert jobs.start(played, submission()) == (f"{submission().stem}-1", True)
    assert played.submitted[0]["metadata"] == {jobs.NAME: "digits", jobs.OUTPUT: "/out", jobs.CONFIG: "a"}


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED])
def test_after_a_job_has_ended_the_next_number_is_taken(status: JobStatus) -> None:
    found = jobs.start(Played(job(9, status), job(10, status)), submission())
    assert found == (f"{submission().stem}-11", True)


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING])
def test_a_job_at_work_on_the_output_is_joined(status: JobStatus) -> None:
    played = Played(job(1, JobStatus.FAILED), job(2, status))
    assert jobs.start(played, submission(name="another")) == (f"{submission().stem}-2", False)
    assert not played.submitted


def test_a_job_at_work_with_another_config_is_not_joined() -> None:
    with pytest.raises(ConfigError, match="at work there with another config; stop it first"):
        jobs.start(Played(job(2, JobStatus.RUNNING, config="b")), submission())


def test_who_is_beaten_to_a_number_joins_the_winner() -> None:
    played = Played()
    played.beaten = 1
    assert jobs.start(played, submission()) == (f"{submission().stem}-1", False)


def test_a_job_that_the_cluster_refuses_is_one_sentence() -> None:
    class Refusing(Played):
        def submit_job(self, **options: Any) -> str:
            raise RuntimeError("Request failed with status code 500: Traceback ...\n  File x\nValueError: no such resource\n.")

    with pytest.raises(FedrayError, match=r"did not take the job \(ValueError: no such resource\)"):
        jobs.start(Refusing(), submission())


def test_ids_can_stand_in_an_address() -> None:
    assert submission(name="my run/é").stem.startswith("my-run-")
    assert submission(name="///").stem.startswith("run-")
    assert submission("/a").stem != submission("/b").stem


def test_the_command_survives_the_shell() -> None:
    nasty = ["privacy={regime: none}", 'name=it\'s $(rm -rf /); `x` "y"', "data.source=csv:/a b"]
    assert jobs.make_entrypoint("a.yaml", [], "/out", profile=True).endswith("--resume --profile")
    line = jobs.make_entrypoint("my configs/a.yaml", nasty, "/out put")
    assert shlex.split(line) == ["python", "-m", "fedray", "run", "my configs/a.yaml", *nasty, "--output", "/out put", "--resume"]
    with pytest.raises(ConfigError, match=r"tracking\.uri: holds an address with a password"):
        jobs.make_entrypoint("a.yaml", ["tracking.uri=http://me:pw@mlflow"], "/out")


def test_outputs_must_be_places_that_every_node_can_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDRAY_OUTPUT", raising=False)
    with pytest.raises(ConfigError, match="storage that all nodes share"):
        jobs.choose_output("digits", None)
    with pytest.raises(ConfigError, match="absolute path"):
        jobs.choose_output("digits", "runs/a")
    assert jobs.choose_output("digits", "/a/../b/") == "/b"
    assert jobs.choose_output("digits", "s3://bucket/a/") == "s3://bucket/a"
    monkeypatch.setenv("FEDRAY_OUTPUT", "s3://bucket/runs/")
    assert jobs.choose_output("digits", None) == "s3://bucket/runs/digits"


def test_the_runtime_environment_carries_references_and_leaves_outputs_out(tmp_path: Path) -> None:
    (tmp_path / "results" / "a").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "results" / "a" / name).touch()
    env = jobs.make_runtime_env(tmp_path, [tmp_path], ["lifelines>=0.30"], {"A": "b"}, {"S": "file:/s"})
    variables = env["env_vars"]
    assert json.loads(variables[credentials.SECRETS]) == {"S": "file:/s"}
    assert (variables["A"], variables[logs.FORM], variables["RAY_JOB_STOP_WAIT_TIME_S"]) == ("b", "json", "60")
    assert "/results/a" in env["excludes"]
    assert ".git" in env["excludes"]
    assert (env["pip"], env["py_modules"]) == (["lifelines>=0.30"], [str(tmp_path)])
    with pytest.raises(ConfigError, match="--pip: holds an address with a password"):
        jobs.make_runtime_env(tmp_path, [], ["a @ https://me:pw@host/a.whl"], {}, {})
    assert credentials.SECRETS not in jobs.make_runtime_env(tmp_path, [], [], {}, {})["env_vars"]


def test_a_working_directory_that_is_too_large_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    big = tmp_path / "data" / "big.npz"
    big.parent.mkdir()
    with big.open("wb") as file:
        file.truncate(shipment.SHIPPED + 1)
    with pytest.raises(ConfigError, match=r"holds 100 MiB to ship, more than 100 MiB \(largest: data/big\.npz 100 MiB\)"):
        jobs.make_runtime_env(tmp_path, [], [], {}, {})
    (tmp_path / ".rayignore").write_text("data\n")
    jobs.make_runtime_env(tmp_path, [], [], {}, {})
    with pytest.raises(ConfigError, match=r"--py-module .*/none: there is no such directory"):
        jobs.make_runtime_env(tmp_path, [tmp_path / "none"], [], {}, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--address"),
        (["--address", "10.0.0.1:8265"], "--address"),
        (["--address", "http://127.0.0.1:1", "--secret", "A_KEY"], "only a reference travels"),
        (["--address", "http://127.0.0.1:1", "--env", "A_KEY=x"], "--env A_KEY"),
        (["--address", "http://127.0.0.1:1", "--output", "here"], "--output here"),
        (["--address", "http://127.0.0.1:1", "--output", "/o", "--working-dir", "/etc"], "lies outside --working-dir"),
        (["--address", "http://127.0.0.1:1", "--output", "/o", "round=3"], "Did you mean 'rounds'?"),
        (["--address", "http://127.0.0.1:1", "--output", "/o", "model.kind=sofmax"], "Did you mean 'softmax'?"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "FEDRAY_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(cli, ["submit", str(CONFIG), "--working-dir", str(CONFIG.parent), *arguments])
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_a_config_with_a_password_does_not_travel(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"{CONFIG.read_text()}\ntracking: {{uri: 'http://me:hunter2@mlflow:5000'}}\n")
    arguments = ["--address", "http://127.0.0.1:1", "--output", "/o", "--working-dir", str(tmp_path)]
    done = CliRunner().invoke(cli, ["submit", str(config), *arguments])
    assert done.exit_code == 2, done.output
    assert "mine.yaml: holds an address with a password" in done.stderr
    assert "hunter2" not in done.output


def test_a_config_that_would_not_be_shipped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    config = tmp_path / "secrets" / "mine.yaml"
    config.write_text(CONFIG.read_text())
    arguments = ["--address", "http://127.0.0.1:1", "--output", "/o", "--working-dir", str(tmp_path)]
    done = CliRunner().invoke(cli, ["submit", str(config), *arguments])
    assert done.exit_code == 2, done.output
    assert "secrets/mine.yaml: would not be shipped" in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("privacy.ledger=books", "privacy.ledger: 'books' leads into the job's own directory"),
        ("privacy.ledger=./a.ledger", "privacy.ledger: './a.ledger' leads into"),
        ("clients={placement: dedicated, groups: [{name: a, clients: [c0], ledger: mine}]}", "clients.groups.0.ledger: 'mine' leads into"),
    ],
)
def test_a_ledger_that_would_be_gone_with_the_job_is_refused(override: str, said: str) -> None:
    arguments = ["--address", "http://127.0.0.1:1", "--output", "/o", "--working-dir", str(CONFIG.parent), override]
    done = CliRunner().invoke(cli, ["submit", str(CONFIG), *arguments])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    for kept in ("run", "/srv/ledger", "s3://bucket/ledger", "file:///srv/ledger"):
        jobs.refuse_passing_ledgers({"privacy": {"ledger": kept}, "clients": {"groups": [{"ledger": kept}, {"ledger": None}]}})


@pytest.mark.parametrize("line", ["--env=REGION=AKIA" + "IOSFODNN7ABCDEFG", "data.source=csv:/data/ghp_" + "a1B2" * 9])
def test_a_key_on_the_command_line_does_not_travel(line: str) -> None:
    arguments = ["--address", "http://127.0.0.1:1", "--output", "/o", "--working-dir", str(CONFIG.parent), line]
    done = CliRunner().invoke(cli, ["submit", str(CONFIG), *arguments])
    assert done.exit_code == 2, done.output
    assert re.search(r"(--env REGION|data\.source): holds (a key of AWS|an access token), and what a job is given is shown", done.stderr)
    assert "AKIA" not in done.output
    assert "ghp_" not in done.output


# -- following -----------------------------------------------------------------------------------


def test_a_log_goes_on_where_it_was_when_the_connection_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    played = Played(log=[["one\ntw", None], ["one\n", "two\nthr", None], ["one\ntwo\nthree\n"]], full="one\ntwo\nthree\nlast words")
    ended = job_client.follow(played, "x", told.append)
    assert told == ["one", "two", "three", "last words"]
    assert ended.status == JobStatus.SUCCEEDED
    assert played.connections == 3


def test_a_cluster_that_stays_away_is_given_up() -> None:
    class Away(Played):
        def get_job_info(self, job_id: str) -> JobDetails:
            raise job_client.Unreachable("no Jobs API answers")

    with pytest.raises(job_client.Unreachable, match=r"has not answered for 0\.1 s .*fedray jobs logs x --follow"):
        job_client.follow(Away(log=[[None]] * 9), "x", print, patience=0.1)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.STOPPED, None, 143),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, -9, 137),
    ],
)
def test_the_run_s_exit_code_is_passed_on(status: JobStatus, code: int | None, expected: int) -> None:
    assert job_client.exit_code(job(1, status, driver_exit_code=code)) == expected


def test_a_job_that_does_not_stop_is_not_waited_for_for_ever() -> None:
    class Stubborn(Played):
        def stop_job(self, job_id: str) -> bool:
            return True

        def get_job_info(self, job_id: str) -> JobDetails:
            return job(1, JobStatus.PENDING)

    with pytest.raises(FedrayError, match=r"still PENDING 0\.1 s after .*before a node has taken it"):
        job_client.stop(Stubborn(), "x", patience=0.1)


# -- health --------------------------------------------------------------------------------------

LOG = [
    "Running entrypoint for job x",
    logs.record(
        "INFO", "digits | ...", run="digits-1", event="started", info={"output": "/out", "rounds": 9, "first_round": 2, "budget": 8.0}
    ),
    logs.record("WARNING", "round 3: client b on n1 failed: broken", run="digits-1", event="note", round=3, client="b"),
    *(
        logs.record("INFO", f"round {n}/9 ...", run="digits-1", event="row", round=n, metrics={"privacy/epsilon": n / 2})
        for n in (3, 4, 5, 6)
    ),
    logs.record("WARNING", "client b, round 3:\nTraceback", run="digits-1", logger="fedray.driver"),
]


def test_a_log_tells_how_far_the_run_is() -> None:
    state = progressed(LOG)
    assert (state.run, state.rounds, state.planned, state.epsilon, state.budget) == ("digits-1", 6, 9, 3.0, 8.0)
    assert state.rows == [f"round {n}/9 ..." for n in (4, 5, 6)]
    assert state.faults == ["round 3: client b on n1 failed: broken", "client b, round 3:"]
    assert progressed(LOG[:2]).rounds == 2
    ended = progressed([*LOG, logs.record("INFO", "", event="ended", summary={"status": "interrupted", "rounds": 6})])
    assert ended.ended == "interrupted"


@pytest.mark.parametrize(
    ("status", "driver", "advice"),
    [
        (JobStatus.RUNNING, True, "--follow"),
        (JobStatus.FAILED, True, "driver is alive all the same: submit the same config and output again to follow it"),
        (JobStatus.FAILED, False, "to continue after the last checkpoint"),
        (JobStatus.STOPPED, False, "to continue after the last checkpoint"),
        (JobStatus.SUCCEEDED, False, "fedray report /out"),
        (JobStatus.PENDING, False, "waits for a node"),
    ],
)
def test_health_says_what_to_do_next(status: JobStatus, driver: bool, advice: str) -> None:
    actors = {"ClientHost": {"alive": 3, "dead": 1}, "Experiment": {"alive": 1}}
    health = Health("x-1", status.value, "it broke\nmore", 1.0, None, "x", "/out", progressed(LOG), actors, driver)
    assert advice in health.advice
    text = health_text(health)
    assert "6 of 9" in text
    assert "3 of 8" in text
    assert "2 noted" in text
    assert "ClientHost 3 alive, 1 dead; Experiment 1 alive" in text
    assert ("it broke" in text) == (status == JobStatus.FAILED)
    assert json.loads(json.dumps(health.data()))["advice"] == health.advice


@pytest.mark.parametrize("last", [{"event": "ended", "summary": {"status": "interrupted"}}, {"event": "error"}])
def test_a_driver_that_has_ended_is_not_offered_for_following(last: dict[str, object]) -> None:
    """It stays for a moment, for whoever follows it."""
    log = [*LOG, logs.record("INFO", "it broke", **last)]
    health = Health("x-1", JobStatus.STOPPED.value, "", 1.0, None, "x", "/out", progressed(log), None, True)
    assert health.advice.endswith("continue after the last checkpoint")


def test_jobs_are_listed_newest_first() -> None:
    table = jobs_text([job(1, JobStatus.FAILED, start_time=1000), job(2, JobStatus.RUNNING, start_time=2000)]).splitlines()
    assert [line.split()[2] for line in table] == ["status", "running", "failed"]
