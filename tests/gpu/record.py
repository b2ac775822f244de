"""The checks of one run of the script: what passed, what failed, what was not run and why, within a budget of seconds."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import torch

#: What a check measured, as JSON data.
Figures = dict[str, Any]


class Missed(Exception):
    """A check did not find what it should have; the message says what, and ``figures`` is what it measured."""

    def __init__(self, why: str, figures: Figures) -> None:
        super().__init__(why)
        self.figures = figures


@dataclass(frozen=True)
class Check:
    """One line of the results."""

    section: str
    name: str
    status: Literal["passed", "failed", "not run"]
    why: str = ""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)


class Record:
    """The checks so far.

    Args:
        device: that is checked.
        budget: seconds for all of them.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.checks = device, list[Check]()
        self._began, self._budget, self._date = time.monotonic(), budget, datetime.now(UTC)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type != "cpu"

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget - (time.monotonic() - self._began)

    def check(self, section: str, name: str, run: Callable[[], Figures], *, takes: float = 5.0, gpu: bool = False) -> None:
        """Run one check, which returns its figures.

        It fails by :class:`Missed` or any other exception, and is not run without a package that it imports.

        Args:
            takes: seconds that must be left of the budget for it to begin.
            gpu: whether it means nothing on the CPU.
        """
        began = time.monotonic()
        if gpu and not self.on_gpu:
            self._add(Check(section, name, "not run", "no GPU"))
            return
        if self.left() < takes:
            self._add(
                Check(section, name, "not run", f"{max(0.0, self.left()):.0f} s of the budget were left, and it may take {takes:g} s")
            )
            return
        try:
            figures = run()
        except ImportError as error:
            found = Check(section, name, "not run", str(error))
        except Missed as error:
            found = Check(section, name, "failed", str(error), time.monotonic() - began, error.figures)
        except Exception as error:
            traceback.print_exc()
            found = Check(section, name, "failed", f"{type(error).__name__}: {error}", time.monotonic() - began)
        else:
            found = Check(section, name, "passed", "", time.monotonic() - began, figures)
        self._add(found)

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        told = f": {check.why}" if check.why else ""
        print(f"{check.status:<8} {check.section}, {check.name} ({check.seconds:.1f} s){told}", flush=True)

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.status == "failed" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "device": device_name(self.device),
            "date": self._date.isoformat(timespec="seconds"),
            "versions": versions(),
            "budget_s": self._budget,
            "used_s": round(self._budget - self.left(), 1),
            "checks": [asdict(check) for check in self.checks],
        }

    def said(self) -> str:
        """In words: how much passed, and what this run did not show."""
        counts = {status: sum(check.status == status for check in self.checks) for status in ("passed", "failed", "not run")}
        lines = [", ".join(f"{n} {status}" for status, n in counts.items()) + f", in {self._budget - self.left():.0f} s."]
        if not self.on_gpu:
            lines.append("There is no GPU here: engines were compared with themselves on the CPU, and nothing was shown about any GPU.")
        lines += [f"Not checked: {check.section}, {check.name} ({check.why})." for check in self.checks if check.status == "not run"]
        return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str | None]:
    """Of what computes; None for what is not there."""
    return {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "driver": _driver()}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
