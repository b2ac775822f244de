"""The lineage of a client, or of a model, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedray.reporting.lineage import rounds_text
from fedray.rounding import as_given, rounded_up

_NO_BOUND = "nothing bounds what it tells of these data"


def client_text(found: Mapping[str, Any]) -> str:
    """:func:`fedray.reporting.lineage.of_client` as text."""
    client, lines = found["client"], list[str]()
    if not found["runs"] and not found["queries"]:
        lines.append(f"The data of client '{client}' went into none of the runs and queries that were read.")
    for run in found["runs"]:
        lines += [f"{run['where']}: {run['name']}, {run['status']}", *(f"  {line}" for line in _run_lines(run, client))]
    for query in found["queries"]:
        lines += [f"{query['where']}: query {query['name']}, {query['status']}", f"  {_took(query, client)}", f"  {_bound(query)}"]
    for ledger in found["ledgers"]:
        lines.append(
            f"{ledger['ledger']}: {ledger['charges']} charges; all together tell of one {ledger['unit']} at most epsilon "
            f"{rounded_up(ledger['epsilon'])} at delta {as_given(ledger['delta'])}"
        )
        lines += [f"  {ledger['withdrawn']}"] if ledger["withdrawn"] else []
    return "\n".join([*lines, *_unread(found["unread"])])


def model_text(found: Mapping[str, Any]) -> str:
    """:func:`fedray.reporting.lineage.of_model` as text."""
    lines: list[str] = []
    for position, run in enumerate(found["runs"]):
        came = "" if position == 0 else "it came through "
        lines += [f"{came}{run['where']}: {run['name']}, model sha256 {run['model_sha256'] or 'none yet'}"]
        lines += [f"  {line}" for line in (*_versions(run["versions"]), *_clients(run))]
    return "\n".join([*lines, *_unread(found["unread"])])


def _run_lines(run: Mapping[str, Any], client: str) -> Iterator[str]:
    yield _took(run, client)
    for parent in run["through"]:
        yield f"it began with the model of {parent}, or with one that came of it, which these data went into"
    yield f"model sha256 {run['model_sha256'] or 'none yet'}"
    yield from _versions(run["versions"])
    for path in run["checkpoints"]:
        yield f"checkpoint {path}"
    if run["sweep"]:
        yield f"trial of the sweep in {run['sweep']}"
    yield _bound(run)


def _took(row: Mapping[str, Any], client: str) -> str:
    if row["part"] == "yes":
        return f"took part in {len(row['rounds'])} rounds: {rounds_text(row['rounds'])}"
    if row["part"] == "through":
        return "took no part itself"
    if row["part"] == "secret":
        number = "all" if row.get("clients") is None else f"the {row['clients']}"
        return f"who took part in which round is secret, on which its claim rests; each of {number} clients counts as if it had, '{client}' if it is one"
    return f"its files do not say in which rounds a client took part; '{client}' counts as if it had, if it is a client of it"


def _bound(row: Mapping[str, Any]) -> str:
    own, through = row["bound"], row.get("through")
    if not row["bounded"]:
        return _NO_BOUND
    said = (
        []
        if own is None
        else [
            f"tells of one {own['unit']} at most epsilon {rounded_up(own['epsilon'])} at delta {as_given(own['delta'])}, with all charges before"
        ]
    )
    return " and ".join([*said, *(["what the models that it came through tell, see there"] if through else [])])


def _versions(versions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for v in versions:
        aliases = "".join(f" @{alias}" for alias in v["aliases"])
        yield f"registered as models:/{v['name']}/{v['version']}{aliases} in {v['store']}"


def _clients(run: Mapping[str, Any]) -> Iterator[str]:
    if run["secret"]:
        yield f"who took part is secret, on which its claim rests; it had {run['number']} clients"
    elif run["clients"] is None:
        yield f"its files do not say who took part; it had {run['number'] if run['number'] is not None else 'an unknown number of'} clients"
    else:
        for name, rounds in run["clients"].items():
            yield f"{name}: {len(rounds)} rounds ({rounds_text(rounds)})"


def _unread(sentences: Sequence[str]) -> list[str]:
    return ["", "Not known:", *(f"  {sentence}" for sentence in sentences)] if sentences else []
