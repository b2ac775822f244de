"""Token records of texts, for a ``python:`` source of the user's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedray.errors import DataError

Tokens = npt.NDArray[np.int64]


def character_records(texts: Mapping[str, str], length: int, alphabet: str) -> dict[str, tuple[Tokens, Tokens]]:
    """Cut each client's text into records for next-token prediction of characters.

    A record is ``length`` characters, and its targets are the characters that follow each of them. Records do not share a target; what is
    left at a text's end is left out, and so is a client whose text is too short for one record.

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
    number = {character: k for k, character in enumerate(alphabet)}
    found = {}
    for client, text in texts.items():
        unknown = next((character for character in text if character not in number), None)
        if unknown is not None:
            raise DataError(f"character_records: the text of '{client}' has {unknown!r}, which the alphabet lacks; add it, or replace it.")
        records = (len(text) - 1) // length
        if records < 1:
            continue
        tokens = np.fromiter((number[character] for character in text[: records * length + 1]), dtype=np.int64)
        found[client] = tokens[:-1].reshape(records, length), tokens[1:].reshape(records, length)
    if not found:
        raise DataError(f"character_records: no text has the {length + 1} characters that one record takes.")
    return found
