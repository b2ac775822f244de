"""Children of a process that is contained end with it, and it is seen to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups and death signals are Linux'")

#: Starts children in several ways, writes their ids, and ends as it is told.
PROGRAM = """
import multiprocessing, os, subprocess, sys, time
from fedray.clients.offspring import contain
contain()
contain()  # once more changes nothing
found = []
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # a line at once: others write to the same pipe
def sleeper():
    time.sleep(1000)
child = os.fork()
if not child:
    grandchild = os.fork()
    if grandchild:
        say(grandchild)
    time.sleep(1000)
found.append(child)
daemon = os.fork()
if not daemon:
    os.setsid()
    time.sleep(1000)
found.append(daemon)
process = multiprocessing.get_context("fork").Process(target=sleeper)
process.start()
found.append(process.pid)
shell = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & echo $!; wait"])
found.append(shell.pid)
say(*found, "end")
sys.stdin.readline()
if sys.argv[1] == "exit":
    os._exit(3)
if sys.argv[1] == "leave":
    process.kill()  # multiprocessing waits for it
    sys.exit(3)
time.sleep(1000)
"""


def alive(process: psutil.Process) -> bool:
    """Whether it runs; as a zombie, which nobody fetches, it does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("way", ["exit", "leave", "killed"])
def test_nothing_outlives_its_parent_or_hides_its_end(way: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    held, parents = os.pipe()  # as a socket to Ray, which every forked child has open, too
    program = subprocess.Popen(
        [sys.executable, str(script), way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[parents]
    )
    os.close(parents)
    assert program.stdin is not None and program.stdout is not None
    words: list[str] = []
    while len(words) < 7:  # the shell's child and the grandchild tell of themselves
        line = program.stdout.readline()
        assert line, "the program ended"
        words += line.split()
    children = [psutil.Process(int(word)) for word in words if word != "end" and psutil.pid_exists(int(word))]
    if way == "killed":
        program.send_signal(signal.SIGKILL)
    else:
        program.stdin.write("\n")
        program.stdin.close()
    program.wait(60)
    assert os.read(held, 1) == b""  # comes back when nobody has the other end open any more
    os.close(held)
    limit = time.monotonic() + 60
    while any(alive(child) for child in children):  # the last ones by the guardian, a moment later
        assert time.monotonic() < limit, [child for child in children if alive(child)]
        time.sleep(0.01)


def test_children_live_as_long_as_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import os, subprocess\n"
        "from fedray.clients.offspring import contain\n"
        "contain()\n"
        "child = os.fork()\n"
        "if not child:\n    os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert subprocess.run(['/bin/sh', '-c', 'exit 5']).returncode == 5\n"
    )
    assert subprocess.run([sys.executable, str(script)], check=False, timeout=120).returncode == 0
