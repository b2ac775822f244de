"""What fedray raises on purpose.

Each error is one sentence of what, where and what to do; the command line prints it and
exits with ``exit_code``. Every class can be built from its message alone, so it survives
pickling on its way through Ray.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

_LONGEST_WORD, _LONGEST_LINE = 300, 2000  # characters that an error shows


class FedrayError(Exception):
    """Something failed while running; the sentence says what, where and what to do.

    Of a word or a line that is too long to be read, the sentence has the two ends. What it came of goes along to other processes,
    as the text of its traceback.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(readable(a) if isinstance(a, str) else a for a in args))

    def __reduce__(self) -> tuple[Any, ...]:
        text = "" if self.__cause__ is None else "".join(traceback.format_exception(self.__cause__))
        return _revived, (type(self), self.args, vars(self), text)


def _revived(kind: type[FedrayError], args: tuple[object, ...], state: dict[str, Any], text: str) -> FedrayError:
    error = kind(*args)
    vars(error).update(state)
    error.__cause__ = Elsewhere(text) if text else None
    return error


class Elsewhere(Exception):
    """What was raised in another process, as the text of its traceback."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class ConfigError(FedrayError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class DataError(ConfigError):
    """The data is missing or is not what the configuration says it is."""


class PrivacyRefusal(ConfigError):
    """A setting would void the privacy guarantee.

    ``code`` is stable, of the form ``privacy.<what>``, and stands in front of the sentence.
    """

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(f"[{code}] {message}" if code else message)
        self.code = code


class BudgetReached(FedrayError):
    """No round can be run without overspending the privacy budget."""

    exit_code = 3


class LedgerError(FedrayError):
    """A privacy ledger is missing, broken or locked; training must not go on (fail closed)."""


class ClaimVoid(FedrayError):
    """What was executed is not what was charged: the privacy figure of the run cannot stand."""


class UpdateRejected(FedrayError):
    """A client's update cannot be added to the sum (not finite, or too large for the grid)."""


class RoundFailed(FedrayError):
    """A round ended with fewer updates than ``cohort.min_clients``."""


class Stopped(FedrayError):
    """Training was asked to stop (signal, deadline); nothing of the current update is used."""


def shortened(text: str, longest: int = _LONGEST_WORD) -> str:
    """A text of at most about ``longest`` characters: of a longer one the two ends."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}...({len(text):,} characters)...{text[-longest // 4 :]}"


def readable(text: str) -> str:
    """A text whose words and lines are short enough to be read: of longer ones the two ends."""
    if len(text) <= _LONGEST_WORD:
        return text
    words = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: shortened(word[0]), text)
    return "\n".join(shortened(line, _LONGEST_LINE) for line in words.split("\n"))


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def own_place(error: BaseException) -> str:
    """Where code that is neither fedray's nor an installed package's raised an error: file, line and function; empty where none did."""
    return _own_place([(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)])


def place_in(trace: str) -> str:
    """:func:`own_place` of the text of a traceback."""
    return _own_place([(name, int(line), function) for name, line, function in _FRAME.findall(trace)])


def _own_place(frames: list[tuple[str, int, str]]) -> str:
    for name, line, function in reversed(frames):
        path = Path(name)
        installed = "site-packages" in path.parts or any(path.is_relative_to(library) for library in _LIBRARIES)
        if path.is_absolute() and not installed and path.suffix == ".py":
            return f"{path.name}, line {line}, in {function}"
    return ""


def raised(error: BaseException) -> str:
    """An error in one sentence: its class, what it says, and where the user's own code raised it."""
    place, said = own_place(error), str(error).strip().splitlines()
    return f"{type(error).__name__}" + (f": {said[0].rstrip('.')}" if said else "") + (f" ({place})" if place else "")


_FRAME = re.compile(r'^  File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_LIBRARIES = (Path(__file__).parent, Path(sysconfig.get_paths()["stdlib"]))


def cause_of(error: BaseException, what: str | None = None) -> BaseException:
    """The fedray error that a Ray task's error carries; for any other, one that says ``what`` failed, or the error itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FedrayError):
        return cause
    return error if what is None else FedrayError(f"{what}: {first_line(error)}")
