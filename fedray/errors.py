"""The errors that fedray raises.

Each error is one sentence that says what is wrong, where, and what to do; the command prints it and exits with ``exit_code``. Every class
can be built from its message alone, so that it can be pickled on its way through Ray.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST_WORD, _LONGEST_LINE = 300, 2000  # characters that an error shows


class FedrayError(Exception):
    """Something failed while running; the sentence says what, where and what to do.

    A word or a line that is too long to be read is shortened to its two ends. In another process the error's cause is the text of the
    original traceback.
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
    """An error of another process, as the text of its traceback."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class ConfigError(FedrayError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class DataError(ConfigError):
    """The data is missing, or differs from what the configuration says."""


class PrivacyRefusal(ConfigError):
    """A setting would void the privacy guarantee.

    ``code`` is a stable text of the form ``privacy.<what>`` and precedes the sentence.
    """

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(f"[{code}] {message}" if code else message)
        self.code = code


class BudgetReached(FedrayError):
    """No round can be run without overspending the privacy budget."""

    exit_code = 3


class LedgerError(FedrayError):
    """A privacy ledger is missing, broken or locked; training must not go on (fail closed)."""


class StoreError(FedrayError):
    """An object store cannot be reached, or refuses a request. A ledger that lies in it cannot be charged then (fail closed)."""


class ClaimVoid(FedrayError):
    """The executed training is not the one that was charged, so the run's privacy figures are not valid."""


class UpdateRejected(FedrayError):
    """A client's update cannot be added to the sum (not finite, or too large for the grid)."""


class RoundFailed(FedrayError):
    """A round ended with fewer updates than ``cohort.min_clients``."""


class Stopped(FedrayError):
    """Training was asked to stop (signal, deadline); nothing of the current update is used."""


def shortened(text: str, longest: int = _LONGEST_WORD) -> str:
    """Return a text, shortened to its two ends if it has more than ``longest`` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}...({len(text):,} characters)...{text[-longest // 4 :]}"


def readable(text: str) -> str:
    """Return a text with words and lines that are too long to be read shortened to their two ends."""
    if len(text) <= _LONGEST_WORD:
        return text
    words = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: shortened(word[0]), text)
    return "\n".join(shortened(line, _LONGEST_LINE) for line in words.split("\n"))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank, or the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def own_place(error: BaseException) -> str:
    """Return the file, line and function of the user's own code that raised an error; empty if other code raised it."""
    return _own_place([(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)])


def place_in(trace: str) -> str:
    """Return :func:`own_place` for the text of a traceback."""
    return _own_place([(name, int(line), function) for name, line, function in _FRAME.findall(trace)])


def _own_place(frames: list[tuple[str, int, str]]) -> str:
    for name, line, function in reversed(frames):
        path = Path(name)
        installed = "site-packages" in path.parts or any(path.is_relative_to(library) for library in _LIBRARIES)
        if path.is_absolute() and not installed and path.suffix == ".py":
            return f"{path.name}, line {line}, in {function}"
    return ""


def raised(error: BaseException) -> str:
    """Describe an error by its class, its text, and the place in the user's own code that raised it."""
    place, said = own_place(error), str(error).strip().splitlines()
    return f"{type(error).__name__}" + (f": {said[0].rstrip('.')}" if said else "") + (f" ({place})" if place else "")


@contextmanager
def blaming(part: str, kind: type[FedrayError] = ConfigError) -> Iterator[None]:
    """Make one sentence of whatever a part of the user's raises, ``SystemExit`` too; fedray's own errors pass.

    Args:
        part: the beginning of the sentence, such as ``cohort.kind: 'python:mine:sampler'``.
        kind: class of the error.
    """
    try:
        yield
    except FedrayError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{part} failed with {raised(error)}.") from error


_FRAME = re.compile(r'^  File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_LIBRARIES = (Path(__file__).parent, Path(sysconfig.get_paths()["stdlib"]))


def cause_of(error: BaseException, what: str | None = None) -> BaseException:
    """Return the fedray error inside a Ray task's error; without one, an error that says that ``what`` failed, or the error itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FedrayError):
        return cause
    return error if what is None else FedrayError(f"{what}: {first_line(error)}")
