"""Separate hosts on one Linux machine: each with an address, processes, a host name, /dev/shm and /tmp/ray of its own.

A host is a set of namespaces (network, mount, uts, ipc, pid). The hosts of one `Hosts` are plugged into a bridge that has a
network namespace to itself, so the machine's own network is left as it is. Every namespace is held by a process that reads a pipe
from us and ends with it: nothing is left over, even where we are killed. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fedray.errors import ConfigError

#: What a host does first: a name, then file systems of its own; from then on it waits for the end of its standard input. It is the
#: first process of its pid namespace, so it ignores SIGCHLD: orphans are then reaped by the kernel.
_BOOT = """
set -e
hostname "$1"
mkdir -p /tmp/ray /mnt
for d in /dev/shm /tmp/ray /mnt; do mount -t tmpfs -o size=4g,mode=1777 fedray "$d"; done
echo up
exec env --ignore-signal=CHLD cat
"""
_SEPARATE = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private"]


def missing() -> str | None:
    """Why hosts cannot be made here, or None where they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "nsenter", "unshare", "mount", "hostname") if shutil.which(tool) is None]
    return f"network namespaces need {', '.join(absent)} (packages iproute2, util-linux, hostname)" if absent else None


class Hosts:
    """Hosts on a network of their own, numbered from .1 in the order in which they are added.

    Args:
        prefix: stands in front of the hosts' names in error messages and in their host names.
        network: their network; several `Hosts` at once may use the same one, unless they have an uplink.
        uplink: give this machine the last address of the network, so that it reaches the hosts and they reach it.

    Raises:
        ConfigError: they cannot be made here (not root, or a tool is missing).
    """

    def __init__(self, prefix: str = "fedray", network: str = "10.77.0.0/24", uplink: bool = False) -> None:
        why = missing()
        if why:
            raise ConfigError(f"hosts: {why}; use several nodes on 127.0.0.1 instead (python -m cluster.local without --namespaces).")
        self.prefix = prefix
        self.network = ipaddress.IPv4Network(network)
        self._hosts: list[Host] = []
        self._switch = _holder()
        self._on_switch("ip", "link", "set", "lo", "up")
        self._on_switch("ip", "link", "add", "br0", "type", "bridge")
        self._on_switch("ip", "link", "set", "br0", "up")
        if uplink:
            self._plug_machine()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, name: str) -> Host:
        """A new host, booted."""
        number = len(self._hosts) + 1
        host = Host(f"{self.prefix}-{name}", str(self.network[number]), _holder(), self._switch, port=f"p{number}")
        self._hosts.append(host)
        network = f"/proc/{host.network_pid}/ns/net"
        self._on_switch("ip", "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", network)
        _enter(host.network_pid, "ip", "addr", "add", f"{host.address}/{self.network.prefixlen}", "dev", "eth0")
        for device in ("lo", "eth0"):
            _enter(host.network_pid, "ip", "link", "set", device, "up")
        _enter(host.network_pid, "ip", "route", "add", "default", "dev", "eth0")
        self._on_switch("ip", "link", "set", host.port, "master", "br0", "up")
        host.boot()
        return host

    def close(self) -> None:
        """SIGKILL every host and take the network down."""
        for host in self._hosts:
            host.kill()
            _end(host.holder)
        _end(self._switch)

    def _on_switch(self, *command: str) -> None:
        _enter(self._switch.pid, *command)

    def _plug_machine(self) -> None:
        """A cable from the bridge to this machine; it goes when the bridge goes."""
        name = f"fr{os.getpid()}"
        mine = f"{self.network[-2]}/{self.network.prefixlen}"
        self._on_switch("ip", "link", "add", "uplink", "type", "veth", "peer", "name", name, "netns", f"/proc/{os.getpid()}/ns/net")
        self._on_switch("ip", "link", "set", "uplink", "master", "br0", "up")
        _command("ip", "addr", "add", mine, "dev", name)
        _command("ip", "link", "set", name, "up")


class Host:
    """One host; made by `Hosts.add`. It keeps its address and its cable while it is down."""

    def __init__(self, name: str, address: str, holder: subprocess.Popen[str], switch: subprocess.Popen[str], port: str) -> None:
        self.name = name
        self.address = address
        self.holder = holder
        self.port = port
        self._switch = switch
        self._init: subprocess.Popen[str] | None = None
        self._first = 0
        self._started: list[subprocess.Popen[Any]] = []
        self._binds: dict[Path, Path] = {}

    @property
    def network_pid(self) -> int:
        """A process in this host's network namespace."""
        return self.holder.pid

    @property
    def up(self) -> bool:
        """Whether the host runs."""
        return self._init is not None and self._init.poll() is None

    @property
    def pid(self) -> int:
        """Its first process; `nsenter --target PID --all COMMAND` runs something in the host from outside.

        Raises:
            ConfigError: the host is down.
        """
        if not self.up:
            raise ConfigError(f"host {self.name}: it is down; boot() it first.")
        return self._first

    def boot(self) -> None:
        """Start the host, with /tmp/ray, /dev/shm and /mnt empty and everything bound again; no effect while it runs."""
        if self.up:
            return
        inside = ["nsenter", f"--net=/proc/{self.network_pid}/ns/net", *_SEPARATE, "sh", "-c", _BOOT, "sh", self.name]
        init = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert init.stdout is not None and init.stderr is not None
        if init.stdout.readline() != "up\n":
            raise ConfigError(f"host {self.name}: cannot be booted ({init.stderr.read().strip()}).")
        self._init = init
        self._first = int(Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()[0])
        self._started.clear()
        for target, source in self._binds.items():
            self._mount(source, target)

    def kill(self) -> None:
        """SIGKILL every process of the host at once; returns when they are gone."""
        if self._init is None:
            return
        if self.up:
            os.kill(self._first, signal.SIGKILL)
        # The first process ends after all others have been waited for, and those that `run` started are ours to wait for.
        for process in self._started:
            process.wait()
        _end(self._init)
        self._init = None

    def run(self, command: Sequence[str], *, env: Mapping[str, str | None] | None = None, cwd: str | os.PathLike[str] | None = None,
            **kwargs: Any) -> subprocess.Popen[Any]:  # fmt: skip
        """Start a command in the host.

        Args:
            command: as for `subprocess.Popen`, to which ``kwargs`` go as well; the process has its usual ``pid`` here.
            env: added to our environment; None takes a variable away.
            cwd: a directory as the host sees it; ours unless given.

        Raises:
            ConfigError: the host is down.
        """
        environment = {k: v for k, v in {**os.environ, **(env or {})}.items() if v is not None}
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", f"--wdns={cwd or os.getcwd()}", "--"]
        # Only a child can be in another pid namespace. nsenter would fork for it, and pass no signals on to that child.
        with _this_thread_in("pid", self.pid):
            process = subprocess.Popen([*enter, *command], env=environment, **kwargs)
        self._started.append(process)
        return process

    @contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread opens in the block are the host's; works while the host is down, too."""
        with _this_thread_in("net", self.network_pid):
            yield

    def cut(self) -> None:
        """Pull the cable: what is sent is lost in silence."""
        _enter(self._switch.pid, "ip", "link", "set", self.port, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _enter(self._switch.pid, "ip", "link", "set", self.port, "up")

    def bind(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Show the directory (or file) ``source`` at ``target``, in this host alone; again after each boot.

        Raises:
            ConfigError: ``target`` neither exists nor lies below /mnt, which is the host's own.
        """
        source, target = Path(source).resolve(), Path(target)
        if not target.is_relative_to("/mnt") and not target.exists():
            raise ConfigError(f"host {self.name}: cannot bind at {target}; name something that exists, or a path below /mnt.")
        self._mount(source, target)
        self._binds[target] = source

    def _mount(self, source: Path, target: Path) -> None:
        make = 'test -e "$2" || if test -d "$1"; then mkdir -p "$2"; else mkdir -p "$(dirname "$2")" && touch "$2"; fi'
        script = f'{make}\nmount --bind "$1" "$2"'
        _command("nsenter", f"--target={self.pid}", "--mount", "sh", "-ec", script, "sh", str(source), str(target))


def _holder() -> subprocess.Popen[str]:
    """A process with a network namespace of its own."""
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec cat"], stdin=-1, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stderr is not None
    if process.stdout.readline() != "up\n":
        raise ConfigError(f"hosts: no network namespace can be made here ({process.stderr.read().strip()}).")
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _enter(pid: int, *command: str) -> None:
    """Run a command in the network namespace of a process."""
    _command("nsenter", f"--net=/proc/{pid}/ns/net", *command)


def _command(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"hosts: '{' '.join(command)}' failed ({done.stderr.strip()}).")


@contextmanager
def _this_thread_in(kind: str, pid: int) -> Iterator[None]:
    """Put what this thread makes next (``pid``: processes, ``net``: sockets) into a namespace of another process."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    own = {"pid": "pid_for_children"}.get(kind, kind)
    with open(f"/proc/thread-self/ns/{own}") as home, open(f"/proc/{pid}/ns/{kind}") as there:
        if setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the {kind} namespace of process {pid}")
        try:
            yield
        finally:
            setns(home.fileno(), 0)
