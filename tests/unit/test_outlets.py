"""Output that nobody reads any more, and descriptors that are closed from the beginning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

FEDRAY = [sys.executable, "-m", "fedray"]


def piped(command: list[str], lines: int, tmp_path: Path) -> tuple[int, str, list[str]]:
    """Read so many lines of a command and close the pipe: exit code, standard error, lines."""
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, cwd=ROOT)
        assert process.stdout is not None
        read = [process.stdout.readline() for _ in range(lines)]
        process.stdout.close()
        code = process.wait(120)
    return code, (tmp_path / "err").read_text(), read


@pytest.mark.parametrize("command", [["list"], ["config", "--schema"], ["config", "configs/digits.yaml"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(command: list[str], tmp_path: Path) -> None:
    code, err, read = piped([*FEDRAY, *command], 1, tmp_path)
    assert read[0]
    assert (code, err) == (0, "")


_LONG = """
import sys
from fedray import outlets
outlets.forgive()
for number in range(20_000):
    print("a line of the log", number)
print("the end", outlets.gone(), outlets.lost(), outlets.lost(), file=sys.stderr)
"""


def test_what_nobody_reads_goes_nowhere_and_the_work_goes_on(tmp_path: Path) -> None:
    code, err, read = piped([sys.executable, "-c", _LONG], 3, tmp_path)
    assert read[2] == "a line of the log 2\n"
    assert (code, err) == (0, "the end True True False\n")


def test_a_closed_standard_error_is_no_error_either(tmp_path: Path) -> None:
    code = _LONG.replace("number)", "number, file=sys.stderr)")
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint(outlets.gone('stderr'), flush=True)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None and process.stdout is not None
    process.stderr.readline()
    process.stderr.close()
    assert process.stdout.read() == "True\n"
    assert process.wait(120) == 0


def test_a_full_disk_is_still_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", _LONG], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


_OPENS = """
import sys
from fedray import outlets
outlets.forgive()
with open(sys.argv[1], "w") as book:
    print("what is printed", flush=True)
    print("and what is warned of", file=sys.stderr, flush=True)
    book.write("an entry")
"""


def test_a_closed_descriptor_is_never_a_file_of_the_run(tmp_path: Path) -> None:
    """A process that is started with standard output and error closed would give their numbers to the first files that it opens."""
    book = tmp_path / "book"
    line = 'exec "$0" -c "$1" "$2" 0<&- 1>&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, _OPENS, str(book)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert book.read_text() == "an entry"
