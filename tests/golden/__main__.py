"""Golden runs: ``make golden BASE=REVISION [ARGS="w3 client --expect w3:model"]``.

Makes the runs of ``configs`` at a base revision and at the working tree, side by side on this machine, and says for each whether the
model's bytes, the ledger's figures, the rows and the results are the same. Nothing is stored between calls, since the last bits
depend on the processor. The runs go through the command line, so that modules can be moved. A tree that has the run in its own
``tests/golden/configs`` reads it there (keys may be renamed), else in the working tree's.

The exit code is 1 where a run failed, or where something changed that ``--expect RUN`` or ``--expect RUN:KIND`` did not name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.golden.compare import KINDS, LEDGER, differences
from tests.golden.goldenparts import write_silos

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path("tests", "golden")
RUNS = [path.stem for path in sorted((ROOT / GOLDEN / "configs").glob("*.yaml"))]
#: Runs that are first made with this override, and then resumed as their config says.
STOPPED = {"resume": "rounds=2"}
#: Sentences that are shown of what changed, of a kind of one run.
SHOWN = 4


class RunFailed(Exception):
    """A run did not come to its end; the message says which command failed, with which tree, and how its output ended."""


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """The revision's files in a git worktree, which is removed at the end."""
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], check=True)


def make_run(name: str, tree: Path, work: Path) -> Path:
    """Make one run with the fedray of ``tree``; gives the output folder, with the ledger's figures in it.

    Raises:
        RunFailed: it did not come to its end.
    """
    golden = next(t / GOLDEN for t in (tree, ROOT) if (t / GOLDEN / "configs" / f"{name}.yaml").exists())
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{golden}", "OMP_NUM_THREADS": "1"}
    output = work / name

    def call(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=work, env=environment, capture_output=True, text=True)
        if done.returncode:
            end = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise RunFailed(f"exit code {done.returncode} of python {' '.join(command)} with {tree}\n{end}")
        return done.stdout

    found = Path(call("-c", "import fedray; print(fedray.__file__)").strip())
    if not found.is_relative_to(tree):
        raise RunFailed(f"fedray was imported from {found}, not from {tree}")
    run = ("-m", "fedray", "run", str(golden / "configs" / f"{name}.yaml"), "--output", str(output))
    if name in STOPPED:
        call(*run, STOPPED[name])
    call(*run, *(["--resume"] if name in STOPPED else []))
    if json.loads((output / "summary.json").read_text())["privacy"]:
        (output / LEDGER).write_text(call("-m", "fedray", "ledger", "show", str(output), "--json"))
    return output


def main(arguments: list[str]) -> int:
    """Make the runs and print a row for each; the exit code."""
    parser = argparse.ArgumentParser(prog="make golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="revision to compare with")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"some of {', '.join(RUNS)}; all, if none is named")
    parser.add_argument(
        "--expect", nargs="+", default=[], metavar="RUN[:KIND]", help=f"what will change; KIND is one of {', '.join(KINDS)}"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.runs if name not in RUNS]:
        parser.error(f"no golden run is called {', '.join(unknown)}; there are {', '.join(RUNS)}")
    cells = {f"{run}:{kind}" for run in RUNS for kind in KINDS}
    if unknown := [name for name in options.expect if name not in cells and name not in RUNS]:
        parser.error(f"--expect {', '.join(unknown)}: give RUN or RUN:KIND; KIND is one of {', '.join(KINDS)}")
    expected = cells & set(options.expect) | {cell for cell in cells if cell.split(":")[0] in options.expect}

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed then, too
    place = Path(tempfile.mkdtemp(prefix="golden-"))
    with checkout(options.base, place / "source") as base:
        trees = {"base": base, "tree": ROOT}
        for side in trees:
            write_silos(place / side / "silos")
        print("".join(f"{title:<16}" for title in ("run", *KINDS)), flush=True)
        good = [compare(name, trees, place, expected) for name in options.runs or RUNS]
    if all(good):
        shutil.rmtree(place)
        print("Nothing changed that was not expected.")
        return 0
    print(f"The outputs of the runs are kept in {place}.")
    return 1


def compare(name: str, trees: dict[str, Path], place: Path, expected: set[str]) -> bool:
    """Make the run at both trees and print what changed; whether all of it was expected."""
    with ThreadPoolExecutor(len(trees)) as pool:  # side by side: most of a short run's time is spent waiting for Ray's processes
        runs = [pool.submit(make_run, name, tree, place / side) for side, tree in trees.items()]
    try:
        changed = differences(*(run.result() for run in runs))
    except RunFailed as error:
        print(f"{name:<16}FAILED: {error}", flush=True)
        return False
    words = {False: {False: "same", True: "CHANGED"}, True: {False: "same, expected!", True: "changed"}}
    print(f"{name:<16}" + "".join(f"{words[f'{name}:{kind}' in expected][bool(changed[kind])]:<16}" for kind in KINDS), flush=True)
    for kind, sentences in changed.items():
        more = [f"and {len(sentences) - SHOWN} more"] if len(sentences) > SHOWN else []
        for sentence in sentences[:SHOWN] + more:
            print(f"    {kind}: {sentence}", flush=True)
    return not any(sentences and f"{name}:{kind}" not in expected for kind, sentences in changed.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
