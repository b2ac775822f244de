"""Hosts in network namespaces: each has an address, processes and files of its own, and all of it ends with its maker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from processes import wait_until

from cluster import hosts as namespaces
from cluster.hosts import Host, Hosts
from fedray.errors import ConfigError


def said(host: Host, script: str) -> str:
    process = host.run(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return str(process.communicate(timeout=600)[0]).strip()


def reaches(host: Host, address: tuple[str, int]) -> bool:
    try:
        with host.network():
            socket.create_connection(address, timeout=0.3).close()
    except OSError:
        return False
    return True


def listener(host: Host, port: int) -> socket.socket:
    with host.network():
        return socket.create_server((host.address, port))


def test_a_host_has_a_name_an_address_processes_and_files_of_its_own(hosts: Hosts, tmp_path: Path) -> None:
    a, b = hosts.add("a"), hosts.add("b")
    (tmp_path / "records.csv").write_text("age\n63\n")
    a.bind(tmp_path, "/mnt/site")
    assert said(a, "hostname") == "t-a"
    assert said(a, "cat /mnt/site/records.csv") == "age\n63"
    assert said(b, "ls /mnt") == ""
    said(a, "touch /tmp/ray/mine /dev/shm/mine")
    assert said(b, "ls /tmp/ray /dev/shm | grep mine") == ""
    assert not Path("/tmp/ray/mine").exists()
    assert a.address in said(a, "ip -brief address show eth0")
    assert len(said(a, "ls -d /proc/[0-9]*").split()) < 6, "it sees processes of others"
    assert said(a, "pwd") == os.getcwd()


def test_variables_are_added_and_taken_away(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "outer")
    monkeypatch.setenv("GONE", "gone")
    a = hosts.add("a")
    process = a.run(["env"], env={"INNER": "inner", "GONE": None}, stdout=subprocess.PIPE, text=True, cwd="/")
    lines = process.communicate(timeout=600)[0].splitlines()
    assert {"OUTER=outer", "INNER=inner"} <= set(lines)
    assert not any(line.startswith("GONE=") for line in lines)


def test_a_cut_cable_loses_what_is_sent_until_it_is_mended(hosts: Hosts) -> None:
    a, b = hosts.add("a"), hosts.add("b")
    with listener(b, 4000):
        wait_until(lambda: reaches(a, (b.address, 4000)), "the listener is reached")
        b.cut()
        assert not reaches(a, (b.address, 4000))
        b.mend()
        wait_until(lambda: reaches(a, (b.address, 4000)), "the cable is mended")


def test_killing_a_host_kills_all_of_it_and_booting_starts_it_afresh(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    a = hosts.add("a")
    a.bind(tmp_path / "file", "/mnt/deep/file")
    said(a, "touch /tmp/ray/lost")
    process = a.run(["sh", "-c", "sleep 1000 & exec sleep 1000"])
    a.kill()
    assert process.returncode == -signal.SIGKILL
    assert not a.up
    with pytest.raises(ConfigError, match="t-a: it is down"):
        a.run(["true"])
    a.boot()
    assert a.up
    assert said(a, "ls /tmp/ray") == ""
    assert said(a, "cat /mnt/deep/file") == "kept"
    with listener(a, 4000):
        b = hosts.add("b")
        wait_until(lambda: reaches(b, (a.address, 4000)), "the listener is reached")


def test_signals_reach_the_process_itself_and_orphans_are_reaped(hosts: Hosts) -> None:
    a = hosts.add("a")
    ready = "echo ready; while :; do read -t 0.05 line; done"
    process = a.run(["bash", "-c", f"trap 'echo told; exit 7' TERM; {ready}"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=600) == 7
    said(a, "(sleep 0.01 &) &")
    wait_until(lambda: said(a, "cat /proc/[0-9]*/stat | grep -c '(sleep)'") == "0", "the orphan is reaped")


def test_nothing_of_a_host_outlives_its_maker(hosts: Hosts) -> None:
    del hosts  # for its skip
    script = "from cluster.hosts import Hosts; h = Hosts('o').add('a'); print(h.run(['sleep', '1000']).pid, flush=True); input()"
    maker = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert maker.stdout is not None
    pid = int(maker.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    maker.kill()
    maker.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the host's process is gone")


def test_a_bind_that_would_show_on_other_hosts_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below /mnt"):
        hosts.add("a").bind(tmp_path, "/no/such/place")
    assert not Path("/no").exists()


def test_without_root_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="root.*without --namespaces"):
        Hosts()
