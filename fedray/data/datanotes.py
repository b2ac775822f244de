"""What a reader of a plan or a run should know of its data section."""

from __future__ import annotations

from fedray.config import Data
from fedray.data.dataset import per_silo


def notes_of(data: Data, private: bool) -> list[str]:
    """Sentences that need no record: a place of held-out records that cannot be, and a number that is not told.

    Args:
        data: the section.
        private: whether records, or whole clients, are protected.
    """
    notes = []
    holdout = data.holdout
    if "at" in holdout.model_fields_set and holdout.at == "driver" and holdout.fraction > 0 and per_silo(data):
        notes.append(
            f"data.holdout.at=driver: in {data.source} each client has a place of its own, so each holds out its own records, as with at=clients; the "
            "driver evaluates only on a public test set (data.test)."
        )
    if private and data.arguments.get("missing_rows") == "drop":
        notes.append(
            "data.missing_rows=drop: how many records are left out for missing cells is not told, for it is a fact about private records; who holds "
            "them can count."
        )
    return notes


def said_of_dropped(dropped: int, kept: int) -> list[str]:
    """How many records were left out of a run without privacy; nothing if none was.

    Args:
        dropped: number of records with missing cells.
        kept: number of all others, training and held-out ones.
    """
    if not dropped:
        return []
    return [f"data.missing_rows=drop: {dropped:,} of {dropped + kept:,} records are left out, because they have missing cells."]
