"""The order in which a member of a secure sum does what it is asked, each thing once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fedray.secure.protocol import Order, Refused


class Turns:
    """Lets a member do one thing at a time; whatever goes wrong in one shuts the member.

    Args:
        phases: in their order.
        who: refuses, as the beginning of a sentence.
        order: the attempt.
        forget: is called when the member is shut.
    """

    def __init__(self, phases: Sequence[str], who: str, order: Order, forget: Callable[[], None]) -> None:
        self._phases, self._who, self._order, self._forget = phases, who, order, forget
        self._lock, self._done, self._shut = threading.Lock(), 0, ""

    @contextmanager
    def take(self, phase: str) -> Iterator[None]:
        """One phase, which has to be the next one.

        Raises:
            Refused: the phase is another one, the member is shut, or what is done in the phase raises a ValueError, which says why.
        """
        with self._lock:
            try:
                if self._shut:
                    raise ValueError(f"it has refused before, because {self._shut}")
                expected = self._phases[self._done] if self._done < len(self._phases) else "nothing"
                if phase != expected:
                    raise ValueError(f"the phase '{phase}' is out of order: it is asked for '{phase}', but the next phase is '{expected}'")
                yield
                self._done += 1
            except BaseException as error:
                self._shut = self._shut or str(error) or type(error).__name__
                self._forget()
                if not isinstance(error, ValueError):
                    raise
                raise Refused(f"{self._who} refuses in attempt {self._order.attempt} of round {self._order.round}: {error}.") from error

    def answer(self, answers: Mapping[str, Callable[[bytes], bytes]], phase: str, message: bytes) -> bytes:
        """What the member says in a phase, by what makes its answers.

        Raises:
            Refused: as of :meth:`take`, or the phase has no answer.
        """
        with self.take(phase):
            if phase not in answers:
                raise ValueError(f"'{phase}' is not answered")
            return answers[phase](message)
