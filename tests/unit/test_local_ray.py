"""Starting a local Ray: what happens where it does not start, and what is left behind. No Ray is started here."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants
from ray._private.node import Node

from fedray.config import RayCluster
from fedray.errors import BudgetReached, ConfigError, FedrayError, RoundFailed, Stopped
from fedray.experiment.cluster import find_place
from fedray.experiment.localray import local_ray, temporary_files

SLOW = "The current node timed out during startup."


class Played:
    """Ray, played: raises the given errors one after the other, then starts."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.started: list[dict[str, Any]] = []
        self.ended = 0
        self.loopback: list[bool] = []

    def init(self, **options: Any) -> None:
        directory = Path(options["_temp_dir"]) / "session_1"
        directory.mkdir(parents=True, exist_ok=True)
        self.started.append(options)
        self.loopback.append(not ray_constants.ENABLE_RAY_CLUSTER)
        if self.errors:
            raise self.errors.pop(0)

    def shutdown(self, wait_for_processes: bool = False) -> None:
        self.ended += wait_for_processes


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory for temporary files whose path is short enough for sockets."""
    real = tmp_path_factory.mktemp("temporary")
    short = Path("/tmp") / f"fr{os.getpid()}"
    short.symlink_to(real)
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    for name in [n for n in os.environ if n.startswith("RAY_")]:
        monkeypatch.setenv(name, os.environ[name])  # so that what the code sets is undone
    yield short
    short.unlink()


def played(monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> Played:
    made = Played(*errors)
    monkeypatch.setattr(ray, "init", made.init)
    monkeypatch.setattr(ray, "shutdown", made.shutdown)
    return made


def in_ray(said: list[str] | None = None) -> Any:
    return local_ray(RayCluster(address="local", cpus=1), {}, (said if said is not None else []).append)


def test_it_listens_on_loopback_alone_in_a_directory_of_its_own_that_goes_with_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = played(monkeypatch)
    with in_ray():
        (directory,) = base.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert Path(known.started[0]["_temp_dir"]).parent == directory
    assert known.loopback == [True]
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert (list(base.iterdir()), known.ended) == ([], 1)


def test_one_that_starts_too_slowly_is_started_once_more(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, said = played(monkeypatch, Exception(SLOW)), list[str]()
    with in_ray(said):
        assert len(known.started) == 2
    assert said == [f"a local Ray did not start in time ({SLOW}); trying once more"]
    assert list(base.iterdir()) == []


def test_one_that_never_starts_ends_in_a_sentence_that_says_what_to_do(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = played(monkeypatch, Exception(SLOW), RuntimeError("the raylet died"))
    with pytest.raises(FedrayError, match=r"in two attempts \(the raylet died\).*ray.cpus=1.*ray.address"), in_ray():
        pass
    assert (len(known.started), len(list(base.iterdir()))) == (2, 1)


def test_what_a_second_attempt_cannot_mend_is_not_tried_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = played(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(FedrayError, match="cannot be started here .*No space left"), in_ray():
        pass
    assert len(known.started) == 1


def test_processes_of_a_node_that_was_half_started_are_ended(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[dict[str, Any]] = []

    class Half(Node):  # type: ignore[misc]
        def __init__(self) -> None:
            self.all_processes: dict[str, Any] = {}
            raise Exception(SLOW)

        def kill_all_processes(self, **options: Any) -> None:
            ended.append(options)

    known = played(monkeypatch)
    monkeypatch.setattr(ray, "init", lambda **options: known.init(**options) if len(known.started) else (known.init(**options), Half()))
    with in_ray():
        assert len(known.started) == 2
    assert [options["wait"] for options in ended] == [True]


def test_an_interrupted_start_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), in_ray():
        pass
    assert list(base.iterdir()) == []


def test_what_killed_processes_left_goes_and_what_others_use_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(name: str, lock: bool = True) -> Path:
        directory = base / name
        (directory / "r" / "session_1").mkdir(parents=True)
        if lock:
            (directory / "fedray.lock").touch()
        return directory

    abandoned, alive, foreign, other = left("fedray-0001"), left("fedray-0002"), left("fedray-0003", lock=False), left("session_1")
    (base / "fedray-0004").symlink_to(other)
    played(monkeypatch)
    with open(alive / "fedray.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with in_ray():
            assert [p.exists() for p in (abandoned, alive, foreign, other)] == [False, True, True, True]
    assert (other / "r" / "session_1").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError(), RoundFailed("every client failed; see the log.")])
def test_rays_logs_stay_until_the_next_start_where_the_run_failed(error: Exception, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch)
    with pytest.raises(type(error)), in_ray():
        raise error
    assert len(list(base.glob("fedray-????/r/session_1"))) == 1
    with in_ray():
        assert len(list(base.iterdir())) == 1
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("error", [ConfigError("clients: ..."), Stopped("stopped."), BudgetReached("reached."), SystemExit(143)])
def test_nothing_stays_where_there_is_nothing_to_look_into(error: BaseException, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch)
    with pytest.raises(type(error)), in_ray():
        raise error
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_directory_for_temporary_files_with_too_long_a_path_is_refused_by_its_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "/tmp/" + "a" * 60)
    with pytest.raises(ConfigError, match=f"^{name}: /tmp/aaaa.* is too long for the sockets of a local Ray.*such as /tmp") as refused:
        find_place(RayCluster(address="local"))
    room = int(str(refused.value).rpartition("at most ")[2].split()[0])
    monkeypatch.setenv(name, "/tmp/" + "a" * (room - 5))
    assert temporary_files() == Path("/tmp/" + "a" * (room - 5))
    monkeypatch.setenv(name, "/tmp/" + "a" * (room - 4))
    with pytest.raises(ConfigError):
        temporary_files()
