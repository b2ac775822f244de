"""Texts as token records: characters as tokens, and the clients that a text names itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedray.errors import DataError

Tokens = npt.NDArray[np.int64]

#: The printable characters of ASCII, and the end of a line.
PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))


def character_records(texts: Mapping[str, str], length: int, alphabet: str) -> dict[str, tuple[Tokens, Tokens]]:
    """Cut each client's text into records for next-token prediction of characters, for a ``python:`` source of the user's.

    See :func:`cut`; a client whose text is too short for one record is left out.

    Args:
        texts: client (an author, a role) to its text.
        length: T, characters of a record.
        alphabet: the characters that there are, in the order of their token numbers; give ``data.classes`` as many.

    Returns:
        Client to (x, y), both int64 ``[n, length]``.

    Raises:
        DataError: a character that is not in the alphabet, or no text is long enough.
    """
    if length < 1:
        raise DataError(f"character_records: a record of {length} characters holds none; give a length of at least 1.")
    found = {}
    for client, text in texts.items():
        unknown = next((character for character in text if character not in alphabet), None)
        if unknown is not None:
            raise DataError(f"character_records: the text of '{client}' has {unknown!r}, which the alphabet lacks; add it, or replace it.")
        x, y = cut(tokens_of(text, alphabet), length)
        if len(x):
            found[client] = x, y
    if not found:
        raise DataError(f"character_records: no text has the {length + 1} characters that one record takes.")
    return found


def tokens_of(text: str, alphabet: str) -> Tokens:
    """The number of each character in the alphabet, and ``len(alphabet)`` for all others, int64 ``[len(text)]``."""
    number = {character: k for k, character in enumerate(alphabet)}
    return np.fromiter((number.get(character, len(alphabet)) for character in text), dtype=np.int64, count=len(text))


def cut(tokens: Tokens, length: int) -> tuple[Tokens, Tokens]:
    """Records of ``length`` tokens, in the order of the text, and the token that follows each: both int64 ``[n, length]``.

    Records do not share a target; what is left at the end is left out.
    """
    n = max(0, len(tokens) - 1) // length
    whole = tokens[: n * length + 1]
    return whole[:-1].reshape(n, length), whole[1:].reshape(n, length)


def roles(play: str) -> dict[str, str]:
    """What each role of a play says, in order.

    A speech is a line ``ROLE:`` and the lines after it, up to an empty line. Lines that follow no such line (titles, stage directions) are
    nobody's.

    Returns:
        Role to its speeches, each of which ends with a newline; in the order of their first speeches.
    """
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n\s*\n", play.strip()):
        head, _, speech = block.partition("\n")
        if head.strip().endswith(":") and speech.strip():
            found.setdefault(head.strip()[:-1].strip(), []).append(speech + "\n")
    return {role: "".join(speeches) for role, speeches in found.items()}
