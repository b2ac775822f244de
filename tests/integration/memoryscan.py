"""Looks for bytes in the memory of other processes, in what they share, and in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

_CHUNK, _OVERLAP, _PAGE = 1 << 24, 1 << 8, os.sysconf("SC_PAGE_SIZE")


class Needles:
    """Bytes to look for, by name.

    Args:
        wanted: of at least 8 bytes each.
    """

    def __init__(self, wanted: Mapping[str, bytes]) -> None:
        self._names: dict[int, list[tuple[str, bytes]]] = {}
        for name, data in wanted.items():
            assert 8 <= len(data) < _OVERLAP
            self._names.setdefault(int.from_bytes(data[:4], "little"), []).append((name, data))
        self._starts = np.array(sorted(self._names), dtype=np.uint32)
        self._low = np.zeros(1 << 16, dtype=bool)
        self._low[self._starts & 0xFFFF] = True

    def found(self, chunks: Iterator[bytes]) -> set[str]:
        """The names of those that are in the data, at whichever place."""
        return {name for chunk in chunks for name in self._in(chunk)}

    def _in(self, data: bytes) -> Iterator[str]:
        for shift in range(4):
            words = np.frombuffer(data, dtype="<u4", offset=min(shift, len(data)), count=max(0, len(data) - shift) // 4)
            likely = np.flatnonzero(self._low[words & 0xFFFF])
            for at in likely[np.isin(words[likely], self._starts)]:
                place = 4 * int(at) + shift
                for name, wanted in self._names[int(words[at])]:
                    if data[place : place + len(wanted)] == wanted:
                        yield name


def memory(pid: int) -> Iterator[bytes]:
    """What a process has in memory: what is its own and in use, and the whole of what it shares with others; not the files of its programs."""
    shared: set[tuple[int, int]] = set()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pages:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, _, _, inode, *path = line.split(maxsplit=5)
            start, stop = (int(end, 16) for end in area.split("-"))
            if rights[0] != "r" or (path and path[0].startswith("[v")):
                continue
            if rights[3] == "s":
                shared.add((int(inode), 0))
            elif not path or path[0].startswith("["):
                yield from _own(mem, pages, start, stop)
    for inode, _ in shared:
        yield from _shared(pid, inode)


def files(root: Path) -> Iterator[bytes]:
    """What is in all files below a directory."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                yield from _read(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _own(mem: object, pages: object, start: int, stop: int) -> Iterator[bytes]:
    """The pages of an area that are in use."""
    entries = np.frombuffer(os.pread(pages.fileno(), 8 * ((stop - start) // _PAGE), 8 * (start // _PAGE)), dtype="<u8")  # type: ignore[attr-defined]
    used = np.concatenate([[0], (entries >> 62) > 0, [0]]).astype(np.int8)  # present, or swapped out
    edges = np.flatnonzero(np.diff(used))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        yield from _read(mem.fileno(), start + int(first) * _PAGE, start + int(last) * _PAGE)  # type: ignore[attr-defined]


def _shared(pid: int, inode: int) -> Iterator[bytes]:
    """The written parts of a file that a process shares, wherever it has it open."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if os.stat(path).st_ino != inode:
                continue
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            end, at = os.fstat(descriptor).st_size, 0
            while at < end:
                try:
                    at = os.lseek(descriptor, at, os.SEEK_DATA)
                except OSError:  # nothing is left
                    break
                hole = os.lseek(descriptor, at, os.SEEK_HOLE)
                yield from _read(descriptor, at, hole)
                at = hole
        finally:
            os.close(descriptor)
        return


def _read(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    """Pieces that overlap, so that nothing of a needle's length lies across two."""
    while start < stop:
        try:
            piece = os.pread(descriptor, min(_CHUNK, stop - start), start)
        except OSError:  # unmapped meanwhile
            return
        if not piece:
            return
        yield piece
        if start + len(piece) >= stop:
            return
        start += max(1, len(piece) - _OVERLAP)
