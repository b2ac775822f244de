"""``data.normalize: {kind: constants, from: QUERY_DIR}``: the constants of a normalizer from the answers of a query.

The section is replaced when a config is read, so that the resolved config holds the numbers themselves, and where they come from under
``queried``. Clients need no access to the query's directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

_WHERE = "data.normalize.from"
_TOLD = ("query", "run", "private", "claim", "epsilon", "delta", "ledger", "source")


def with_queried_constants(raw: dict[str, Any]) -> None:
    """Replace the section in a config's plain data, if it names a query.

    Raises:
        ConfigError: the directory holds no finished query with a statistic of kind variance, or the section names constants besides.
    """
    data = raw.get("data")
    if not isinstance(data, dict):
        return
    section = data.get("normalize")
    if not isinstance(section, dict) or section.get("kind") != "constants" or "from" not in section:
        return
    beside = sorted(set(section) - {"kind", "from"})
    if beside:
        raise ConfigError(f"data.normalize.{beside[0]}: is given besides from, whose answers are the constants; leave one out.")
    data["normalize"] = _constants(section["from"])


def _constants(directory: Any) -> dict[str, Any]:
    if not isinstance(directory, str):
        raise ConfigError(f"{_WHERE}: should be the directory of a query, but is {directory!r}.")
    path = Path(directory) / "answers.json"
    try:
        content = path.read_bytes()
        answers = json.loads(content)
        found = {c: row for one in answers["answers"].values() if one["kind"] == "variance" for c, row in one["columns"].items()}
        columns, made = list(answers["columns"]), {column: _scale(row) for column, row in found.items()}
        told = {key: answers[key] for key in _TOLD}
        normalize = answers["normalize"]
    except FileNotFoundError:
        raise ConfigError(f"{_WHERE}: {directory} holds no answers.json; name the directory of a finished query (fedray query).") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{_WHERE}: {path} cannot be read as the answers of a query ({type(error).__name__}: {error}).") from None
    if not made:
        raise ConfigError(
            f"{_WHERE}: the query in {directory} has no statistic of kind variance, which gives means and deviations; ask for one."
        )
    if normalize != "none":
        raise ConfigError(
            f"{_WHERE}: the query in {directory} was asked of records normalised by '{normalize}'; ask it with data.normalize none."
        )
    return {
        "kind": "constants",
        "mean": [made.get(column, (0.0, 1.0))[0] for column in columns],
        "std": [made.get(column, (0.0, 1.0))[1] for column in columns],
        "queried": {**told, "columns": [c for c in columns if c in made], "sha256": hashlib.sha256(content).hexdigest()},
    }


def _scale(row: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation of a column; at least half of the largest deviation that its interval holds, because noise can make it 0."""
    std = max(float(row["std"]), float(row["std_interval"][1]) / 2)
    low, high = row["bounds"]
    return float(row["mean"]), std if std > 0 else (high - low) / 2


def said_of_queried(queried: Mapping[str, Any], lacking: int | None) -> str:
    """Where a run's constants come from and who has paid for them, as a clause.

    Args:
        queried: see :func:`queried_from`.
        lacking: number of the run's clients whose ledger does not hold the query's charge; None if the run charges nothing to records.
    """
    name, columns = f"query '{queried.get('query')}' ({queried.get('run')})", len(queried.get("columns") or ())
    what = f"{columns} features are scaled by the answers of the {name}"
    if not queried.get("private"):
        return f"{what}, which were not private ({queried.get('claim')})"
    cost = f"epsilon {queried.get('epsilon'):.4g} at delta {queried.get('delta'):.4g} for one record"
    if lacking is None:
        return f"{what}, which cost {cost}"
    if not lacking:
        return f"{what}, which cost {cost}; the ledgers of this run hold that charge, so the figures here contain it"
    return f"{what}, which cost {cost}; the ledgers of {lacking} clients of this run do NOT hold that charge, so the figures here do not contain it"


def queried_from(normalize: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of which query the constants of a normalizer's arguments are; None if they are no query's."""
    found = normalize.get("queried")
    return found if isinstance(found, Mapping) else None
