"""Texts by role, file or author, for the prediction of the next character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedray.data.source import Raw, Silos, Source, Whole, build, check_names, existing
from fedray.data.text import PRINTABLE, Tokens, cut, roles, tokens_of
from fedray.errors import DataError

#: Training records, and the held-out ones that follow them in the text.
_Parts = tuple[tuple[Tokens, Tokens], tuple[Tokens, Tokens]]


def text(
    where: str,
    *,
    by: Literal["role", "file", "author"],
    sequence: Annotated[int, Field(ge=1)] = 80,
    vocabulary: str = PRINTABLE,
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2,
    min_records: Annotated[int, Field(ge=1)] = 1,
    silos: Sequence[str] | None = None,
) -> Source:
    """Texts whose next character is predicted at every position; roles of a play, files or authors are the natural clients.

    A record is a sequence of characters and its targets are the characters that follow each of them, for training.loss=next_token. The
    last records of each client, in the order of its text, are its test set. There are as many classes as characters in the vocabulary
    and one more, which stands for all other characters. With file and author each client reads only its own texts.

    Args:
        where: a file with a play (a line "ROLE:", then what is said, up to an empty line); or a folder of .txt files; or of folders of them.
        by: role: each role of the file is a client; file: each file of the folder; author: each folder in the folder.
        sequence: characters of a record.
        vocabulary: the characters that are told apart, in the order of their classes; it is public. Default: printable ASCII and newline.
        test: share of each client's records, from the end of its text, that are its test set; 0 = none, so that data.holdout applies.
        min_records: training records that a client needs. Roles with fewer are left out; a file or an author with fewer is refused.
        silos: file and author only: the clients' names, so that the driver need not see the folder at all.

    Raises:
        DataError: no such file or folder, no text in UTF-8, a vocabulary that names a character twice, or a text that is too short.

    Source: Caldas et al. 2018, LEAF: A Benchmark for Federated Settings (Shakespeare by role, 80 characters, test records by order of time)
    """
    twice = next((character for character in vocabulary if vocabulary.count(character) > 1), None)
    if twice is not None or not vocabulary:
        raise DataError(f"data.vocabulary: {'names ' + repr(twice) + ' twice' if vocabulary else 'is empty'}; give each character once.")
    name, path = f"text:{where}", Path(where).expanduser()
    labels = (*vocabulary, "other")

    def parts(said: str) -> _Parts:
        x, y = cut(tokens_of(said, vocabulary), sequence)
        kept = len(x) - int(test * len(x))
        return (x[:kept], y[:kept]), (x[kept:], y[kept:])

    def built(train: tuple[Tokens, Tokens], tested: tuple[Tokens, Tokens], **groups: Any) -> Raw:
        own = tested if len(tested[0]) else None
        raw = build(
            name, *train, test=own, classes=len(labels), class_labels=labels, **(groups if own else {**groups, "test_groups": None})
        )
        return replace(raw, test=(raw.x[:0], raw.y[:0])) if test and own is None else raw

    def play() -> Raw:
        found = {role: parts(said) for role, said in roles(_read(existing(path, "data.source"))).items()}
        kept = {role: of_role for role, of_role in found.items() if len(of_role[0][0]) >= min_records}
        if not kept:
            raise DataError(
                f"{name}: of {len(found)} roles none has {min_records} training records of {sequence} characters; a role's speech begins with a "
                "line 'ROLE:' and ends with an empty line. Take less for data.min_records or data.sequence."
            )
        codes = [np.repeat(np.arange(len(kept)), [len(of_role[k][0]) for of_role in kept.values()]) for k in range(2)]
        train, tested = (_joined([of_role[k] for of_role in kept.values()]) for k in range(2))
        return built(train, tested, groups=codes[0], group_names=list(kept), test_groups=codes[1])

    def one(files: Callable[[str], list[Path]], client: str) -> Raw:
        train, tested = parts("\n".join(map(_read, files(client))))
        if len(train[0]) < min_records:
            raise DataError(
                f"{name}: the text of '{client}' gives {len(train[0])} training records of {sequence} characters, fewer than "
                f"data.min_records={min_records}; add text, or take the client out."
            )
        return built(train, tested)

    if by == "role":
        if silos is not None:
            raise DataError("data.silos: names clients that have texts of their own; with data.by=role the file names them, leave it out.")
        if existing(path, "data.source").is_dir():
            raise DataError(f"data.by: role is for one file, but '{path}' is a folder; name the file, or set data.by=file or author.")
        return Whole(play)
    if silos is None and not existing(path, "data.source").is_dir():
        raise DataError(f"data.by: {by} is for a folder, but '{path}' is a file; name its folder, or set data.by=role.")
    files = _file if by == "file" else _texts
    names = list(silos) if silos is not None else sorted(_clients(path, by))
    return Silos(check_names(names, name), partial(one, partial(files, path)), len(labels), labels)


def _clients(folder: Path, by: str) -> list[str]:
    if by == "file":
        return [entry.stem for entry in folder.iterdir() if entry.suffix.lower() == ".txt" and not entry.is_dir()]
    return [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _file(folder: Path, client: str) -> list[Path]:
    found = [entry for entry in folder.glob("*") if entry.stem == client and entry.suffix.lower() == ".txt"] if folder.is_dir() else []
    if len(found) > 1:
        listed = " and ".join(sorted(entry.name for entry in found))
        raise DataError(f"data.source: the folder '{folder}' holds {listed} for the client '{client}'; leave one.")
    return found or [folder / f"{client}.txt"]


def _texts(folder: Path, client: str) -> list[Path]:
    """An author's files, in order of their names."""
    own = existing(folder / client, "data.source")
    found = sorted(entry for entry in own.iterdir() if entry.suffix.lower() == ".txt" and not entry.is_dir())
    if not found:
        raise DataError(f"data.source: the folder '{own}' holds no .txt files.")
    return found


def _read(path: Path) -> str:
    try:
        return existing(path, "data.source").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text in UTF-8; convert it.") from None


def _joined(parts: Sequence[tuple[Tokens, Tokens]]) -> tuple[Tokens, Tokens]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


SOURCES = {"text": text}
