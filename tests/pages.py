"""The documentation's pages and their blocks of code, for tests that run them.

A block is run unless a comment right above it says why not: ``<!-- not run: reason -->``. Blocks of Python and YAML whose first line is a comment
with a file's name (``# my_data.py``) are that file, for the blocks below them. ``<!-- exit code 3 -->`` above commands says how the last one ends.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from paths import ROOT

from fedray.cli import cli

OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md", "k8s/README.md")
PAGES = [*OUTSIDE, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
#: Languages of blocks that are run, and of those that only show something.
RUN, SHOWN = ("console", "python", "yaml"), ("text", "json")
_RAY = re.compile(r"^(?:\w+=\S+ )*(?:fedray (?:run|submit|jobs|sweep|query|audit)\b|python -m cluster|make )", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the number of its first line, its language, its text, and what the comment above it says."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def reason(self) -> str:
        """Why the block is not run; empty where it is."""
        found = re.fullmatch(r"not run: (.+)", self.comment, re.S)
        return found[1] if found else ""

    @property
    def exit_code(self) -> int:
        found = re.fullmatch(r"exit code (\d+)", self.comment)
        return int(found[1]) if found else 0

    @property
    def file(self) -> str:
        """The file that the block is, or an empty string."""
        found = re.match(r"# ([\w/-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        """The commands of a console block: its lines that begin with ``$``, with those that continue them."""
        return re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.text, re.M)

    @property
    def starts_ray(self) -> bool:
        if self.language == "console":
            return any(_RAY.search(command) for command in self.commands)
        return self.language == "python" and ("fedray.run(" in self.text or "ray.init(" in self.text) and not self.file

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return list(_blocks(page))


def _blocks(page: str) -> Iterator[Block]:
    lines = (ROOT / page).read_text().splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"^( *)```(\S*)$", lines[at])
        if fence is None:
            at += 1
            continue
        indent, end = fence[1], next(n for n in range(at + 1, len(lines)) if lines[n].strip() == "```")
        above = "\n".join(lines[max(0, at - 6) : at]).rstrip()
        comment = re.search(r"<!-- ((?:(?!-->).)*) -->$", above, re.S)
        text = "".join(f"{line.removeprefix(indent)}\n" for line in lines[at + 1 : end])
        yield Block(page, at + 1, fence[2], text, " ".join(comment[1].split()) if comment else "")
        at = end + 1


def environment() -> dict[str, str]:
    """The environment of the commands: without a cluster or a store of the caller's, with this checkout's ``fedray`` and ``python``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "COVERAGE"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run_page(page: str, folder: Path) -> None:
    """Runs the files, scripts and commands of a page, in order, in a folder that has the repository's configs."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for block in [b for b in blocks(page) if not b.reason]:
        if block.file:
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text(block.text)
        elif block.language == "python":
            (folder / "block.py").write_text(block.text)
            _run(block, "python block.py", folder)
        elif block.language == "console":
            for command in block.commands[:-1]:
                _run(block, command, folder)
            _run(block, block.commands[-1], folder, block.exit_code)


def _run(block: Block, command: str, folder: Path, exit_code: int = 0) -> None:
    """Runs a command: in this process where it is quick and of fedray's alone, which spares its start, else in a shell."""
    words = shlex.split(command, comments=True)
    if words[:1] == ["fedray"] and words[1] in ("plan", "config", "list", "ledger") and not {"|", "||", ">", "&&"} & {*words}:
        before = sys.path[:], Path.cwd()
        os.chdir(folder)
        try:
            done = CliRunner().invoke(cli, words[1:])
        finally:
            sys.path[:] = before[0]
            os.chdir(before[1])
        code, said = done.exit_code, done.output
    else:
        ran = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True)
        code, said = ran.returncode, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    assert code == exit_code, f"{block}: {command} ended with exit code {code}\n{said}"
