"""Hosts in network namespaces behind a firewall that lets nothing in but answers, and what passes on their cables."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import hosts as namespaces
from cluster.hosts import Host, Hosts

_TABLE = """
table inet fence {
  chain input {
    type filter hook input priority 0; policy drop;
    iif "lo" accept
    ct state established,related accept
  }
}
"""


def missing() -> str | None:
    """Why there can be no fenced hosts here, or None where there can."""
    why = namespaces.missing()
    if why is None and not (shutil.which("nft") or shutil.which("iptables")):
        return "a firewall needs nft or iptables (packages nftables, iptables)"
    return why


@contextmanager
def fenced_hosts(prefix: str = "silo") -> Iterator[Hosts]:
    """Hosts on a network of their own; the test skips, and says why, where there can be none."""
    why = missing()
    if why:
        pytest.skip(why)
    with Hosts(prefix) as made:
        yield made


def fence(host: Host) -> None:
    """Drop whatever comes to a host, but answers to what it has sent itself; for as long as its network is there."""
    inside = ["nsenter", f"--net=/proc/{host.network_pid}/ns/net"]
    if shutil.which("nft"):
        subprocess.run([*inside, "nft", "-f", "-"], input=_TABLE, text=True, check=True, capture_output=True)
        return
    for rule in ("-A INPUT -i lo -j ACCEPT", "-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT", "-P INPUT DROP"):
        subprocess.run([*inside, "iptables", *rule.split()], check=True, capture_output=True)


def reaches(host: Host, address: str, port: int, seconds: float = 0.5) -> bool:
    """Whether a TCP connection from a host is taken, or refused, at an address: whether anything answers."""
    try:
        with host.network():
            socket.create_connection((address, port), timeout=seconds).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def listens(host: Host) -> list[str]:
    """The addresses at which anything listens for TCP in a host, as the kernel lists them."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.network_pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                found.append(local)
    return found


class Captured:
    """What a host's network card sends and receives over IPv4, from :meth:`start` to :meth:`stop`."""

    def __init__(self, host: Host) -> None:
        with host.network():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 2**28)  # SO_RCVBUFFORCE
            self._socket.bind(("eth0", 0x0003))
        self._socket.settimeout(0.1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.protocols: set[int] = set()
        self.segments: dict[tuple[str, int, str, int], dict[int, bytes]] = defaultdict(dict)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and see that nothing was missed."""
        self._stopped.set()
        self._thread.join()
        packets, dropped = struct.unpack("II", self._socket.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
        self._socket.close()
        assert packets and not dropped

    def _read(self) -> None:
        while True:
            try:
                packet = self._socket.recv(2**17)
            except TimeoutError:
                if self._stopped.is_set():
                    return
                continue
            if packet[12:14] != b"\x08\x00":
                continue
            ip = packet[14:]
            start, length = (ip[0] & 15) * 4, struct.unpack_from(">H", ip, 2)[0]
            self.protocols.add(ip[9])
            if ip[9] != 6:
                continue
            source, target = (socket.inet_ntoa(ip[at : at + 4]) for at in (12, 16))
            from_port, to_port, sequence = struct.unpack_from(">HHI", ip, start)
            payload = ip[start + (ip[start + 12] >> 4) * 4 : length or None]
            if payload:
                self.segments[source, from_port, target, to_port][sequence] = payload

    def streams(self) -> dict[tuple[str, int, str, int], bytes]:
        """The bytes of each direction of each connection, in order; by source and target."""
        found = {}
        for way, segments in self.segments.items():
            data, following = bytearray(), None
            for sequence in sorted(segments):
                assert following is None or sequence <= following, "a segment is missing"
                data += segments[sequence][max((following or sequence) - sequence, 0) :]
                following = max(following or 0, sequence + len(segments[sequence]))
            found[way] = bytes(data)
        return found


def tls_records(stream: bytes) -> int:
    """Return the number of TLS records that a stream consists of.

    Raises:
        ValueError: it has bytes that are none.
    """
    at = count = 0
    while at < len(stream):
        kind, major, _, length = struct.unpack_from(">BBBH", stream.ljust(at + 5, b"\0"), at)
        if not (20 <= kind <= 23 and major == 3 and length <= 2**14 + 256):
            raise ValueError(f"byte {at} of {len(stream)} does not begin a TLS record")
        at, count = at + 5 + length, count + 1
    return count
