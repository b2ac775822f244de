"""Prints a plan as text; :mod:`fedray.planning.planner` computes its figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedray.planning.forecast import label
from fedray.rounding import rounded_up

#: Largest number of clients that are told apart by their records; of more, those that are charged alike share a row.
CLIENTS = 0

_SAMPLING = {
    "poisson": "Poisson cohorts of {} expected",
    "fixed": "cohorts of {}",
    "cyclic": "cyclic cohorts of {}",
    "all": "all {} every round",
}
_NOTHING = "privacy.regime is none: nothing is protected, nothing is charged."


def plan_text(plan: Mapping[str, Any], clients: int = CLIENTS, width: int | None = None) -> str:
    """Return the plan of :func:`fedray.planning.planner.make_plan` as text, without its refusal. The verdict comes first.

    Args:
        plan: JSON data.
        clients: largest number of clients that are told apart by their records; of more, those that are charged alike share a row.
        width: characters of a line; None for as many as it takes.
    """
    head = f"{plan['name']}: {plan['rounds']} rounds, {plan['clients']} clients, cohort {plan['cohort']}"
    lines = [*(f"{plan['name']}: {_verdict(line)}" for line in plan["lines"]), head, ""]
    for line in plan["lines"]:
        lines += [*_line(line, plan["accountant"], clients, width), ""]
    if not plan["lines"]:
        lines += [_NOTHING if not plan["regimes"] else "nothing can be planned yet, see below.", ""]
    lines += _footprint(plan)
    lines += [f"note: {text}" for text in (*plan["notes"], *plan["warnings"])]
    return "\n".join(lines if width is None else (_wrapped(text, width) for text in lines))


def _verdict(line: Mapping[str, Any]) -> str:
    """What a plan comes to in one clause: the worst verdict of its rows, and epsilon."""
    rows = {row["verdict"]: row for row in line["rows"]}
    worst = next(word for word in ("exceeds", "may exceed", "fits", "no limit") if word in rows)
    said = {"exceeds": "DOES NOT FIT the budget", "may exceed": "MAY EXCEED the budget", "fits": "fits", "no limit": "no budget is set"}[
        worst
    ]
    of = "" if line["budget"] is None else f" of {line['budget']:g}"
    return f"{said}: epsilon {_e(line['epsilon'])}{of} at delta {line['delta']!r} for {line['protects']}"


def _wrapped(text: str, width: int) -> str:
    """A line in lines of at most ``width`` characters, indented as the first one is, and further."""
    margin = " " * (len(text) - len(text.lstrip()))
    if len(text) <= width:
        return text
    return "\n".join(
        textwrap.wrap(
            text.lstrip(), width, initial_indent=margin, subsequent_indent=f"{margin}  ", break_long_words=False, break_on_hyphens=False
        )
    )


def _line(line: Mapping[str, Any], accountant: str, clients: int, width: int | None) -> Iterator[str]:
    budget = "no budget" if line["budget"] is None else f"budget {line['budget']:g}"
    yield f"privacy of {line['protects']} (regime {line['regime']}): " + ", ".join(
        [f"{line['adjacency'].replace('_', '-')} adjacency", f"delta {line['delta']!r}", budget, f"clip {line['clip']:g}", accountant]
    )
    if "population" in line:
        p = line["population"]
        cohorts = _SAMPLING[p["sampling"]].format(format(p["cohort"], "g"))
        charge = "one charge covers everyone" if p["charged"] == "everyone" else "who takes part is charged"
        span = f" for {p['rounds_of_a_charge']} rounds" if p["rounds_of_a_charge"] > 1 else ""
        yield f"  {p['clients']} clients, {cohorts}, mechanism {p['mechanism']}, {charge}{span}"
    yield ""
    yield from _fitting(_head(line), _rows(line, clients), width)
    yield ""
    yield f"  largest epsilon {_e(line['epsilon'])}, {line['persons']} {_e(line['epsilon_person'])}" + "".join(
        f", {words} {_e(line[key])}"
        for key, words in (
            ("epsilon_unamplified", "against whoever knows the cohorts"),
            ("epsilon_observers", "against observers of models"),
        )
        if line.get(key) not in (None, line["epsilon"])
    )
    yield f"  {_noise(line['noise'])}"
    if line.get("evaluations") is not None:
        e = line["evaluations"]
        yield (
            f"  evaluations at the clients: {e['number']} with noise multiplier {e['noise_multiplier']:g}, charged beside the training: epsilon "
            f"{_e(e['epsilon'])} alone, the training {_e(e['epsilon_training'])} alone, both together as above"
        )
        if e["noise_on_accuracy"] is not None:
            yield f"  the noise on a part of all held-out records, such as accuracy, has a standard deviation of {e['noise_on_accuracy']:.2g}"
    yield ""
    levers = [(x["change"], _e(x["epsilon"], 2)) for x in line["levers"]]
    wanted = [
        (f"{x['epsilon']:g}", "out of reach" if x["noise_multiplier"] is None else f"{x['noise_multiplier']:g}")
        for x in line["noise_for_epsilon"]
    ]
    height = max(len(levers), len(wanted))
    what_ifs = zip(*(rows + [("", "")] * (height - len(rows)) for rows in (levers, wanted)), strict=True)
    yield from (f"  {text}" for text in _table(["what if", "epsilon", "for epsilon", "noise"], [[*one, *other] for one, other in what_ifs]))


def _head(line: Mapping[str, Any]) -> list[str]:
    middle = ["records", "rate x steps"] if line["unit"] != "client" else []
    unit = "charges" if line.get("population", {}).get("rounds_of_a_charge", 1) > 1 else "rounds"
    return ["client", *middle, "noise", "charged before", unit, "epsilon before", "after", "affordable", "verdict"]


def _rows(line: Mapping[str, Any], clients: int) -> list[list[str]]:
    """A row for each group of clients that are charged alike; with few clients, of each number of records."""
    few = sum(row["clients"] for row in line["rows"]) <= clients
    found = []
    for row in line["rows"]:
        if not few or row["records"] is None:
            found.append(_row(line, row, label(row["names"]), row["records"]))
            continue
        alike: dict[int, list[str]] = {}
        for name, records in zip(row["names"], row["records"], strict=True):
            alike.setdefault(records, []).append(name)
        found += [_row(line, row, label(names), [records]) for records, names in alike.items()]
    return found


def _row(line: Mapping[str, Any], row: Mapping[str, Any], name: str, records: Sequence[int] | None) -> list[str]:
    often, affordable = row["participations"], row["rounds_affordable"]
    sure = abs(often["expected"] - often["worst"]) < 1e-9
    known = "?" if records is None else f"{min(records)}" if min(records) == max(records) else f"{min(records)}-{max(records)}"
    middle = [known, f"{row['sampling_rate']:g} x {row['steps']}"] if line["unit"] != "client" else []
    after = _e(row["epsilon"], 3) if sure else f"{_e(row['epsilon_expected'], 3)} (at most {_e(row['epsilon'], 3)})"
    verdict = row["verdict"]
    if row["exceeded_in_round"] is not None:
        verdict += f" in round {row['exceeded_in_round']}" if sure else f" about round {row['exceeded_in_round']}"
    elif verdict == "may exceed":
        verdict += f" (chance {row['chance_exceeded']:.1g})"
    return [
        name,
        *middle,
        f"{row['noise_multiplier']:g}",
        f"{row['charges_before']}",
        f"{often['worst']}" if sure else f"{often['expected']:.1f} (at most {often['worst']})",
        _e(row["epsilon_before"], 3),
        after,
        "-" if affordable is None else f"{affordable}" if affordable < 1 << 20 else "over a million",
        verdict,
    ]


def _noise(noise: Mapping[str, Any]) -> str:
    if noise["std_per_value"] is None:
        return "noise: of this mechanism's own kind"
    text = f"noise on {noise['of']}: standard deviation {noise['std_per_value']:.3g} a value, clip {noise['clip']:g}"
    ratio = noise["norm_over_largest_signal"]
    if ratio is None:
        return text
    hint = "" if ratio <= 1 else " (little is learnt from one alone: larger cohorts or batches, fewer parameters or more epsilon help)"
    return f"{text}; over {noise['values']} values its norm is {ratio:.2g} of the largest that the mean itself can have{hint}"


def _footprint(plan: Mapping[str, Any]) -> list[str]:
    memory, traffic, actors = plan["memory"], plan["traffic"], plan["actors"]
    asked = ", ".join(f"{_amount(k, v)}" for k, v in actors["resources"].items()) or "nothing of Ray"
    lines = [
        f"actors    {actors['number']} {actors['placement']} ({actors['number_is']}), asking for {asked}; "
        f"at most about {actors['largest_cohort']} clients a round"
    ]
    if memory is None:
        return [*lines, "memory    known when the silos have told the model's shape"]
    trained = "" if memory["engine"] is None else f" (engine {memory['engine']}, {memory['physical_batch']} records at once)"
    updates = f"sum of updates {_bytes(memory['sum'])}"
    driver = f"the driver adds up {_counted(traffic['parts'], 'part')} a round"
    if traffic["sum_seconds"] is None:
        updates = f"single updates, at most {_bytes(memory['sum'])},"
        driver = f"the driver combines {_counted(traffic['parts'], 'update')} a round"
    else:
        driver += f" in {_seconds(traffic['sum_seconds'])}"
    if traffic["update"] is not None:
        driver += f"; one update takes {_bytes(traffic['update'])} after its stages"
    lines += [
        f"memory    an actor about {_bytes(memory['actor'])}: model {_bytes(memory['model'])} ({memory['parameters']} parameters), optimiser "
        f"{_bytes(memory['optimiser'])}, per-record gradients {_bytes(memory['per_record_gradients'])}{trained}, "
        f"activations not counted; {updates} {memory['sum_lies']}; "
        f"data {_bytes(memory['data'])} {memory['data_lies']}; driver's vectors {_bytes(memory['driver'])}, a checkpoint {_bytes(memory['checkpoint'])}",
        f"traffic   on {traffic['nodes']} node{'s' if traffic['nodes'] > 1 else ''}: a round {_bytes(traffic['up_per_round'])} up "
        f"({_bytes(traffic['up_per_node'])} a node), {_bytes(traffic['down_per_round'])} down ({_bytes(traffic['down_per_node'])} a node); "
        f"{_bytes(traffic['in_all'])} in all; {driver}",
    ]
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _seconds(value: float) -> str:
    return f"about {value:.2g} s" if value >= 0.01 else "less than 0.01 s"


def _amount(name: str, value: float) -> str:
    return f"{_bytes(value)} of memory" if name == "memory" else f"{value:g} {name}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def _fitting(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """A table, or where it is wider than ``width`` a paragraph for each row, with the verdict first."""
    lines = [f"  {text}" for text in _table(head, rows)]
    if width is None or max(map(len, lines)) <= width:
        yield from lines
        return
    for name, *cells, verdict in rows:
        yield f"  {name}: {verdict}"
        yield "    " + ", ".join(f"{title} {cell}" for title, cell in zip(head[1:-1], cells, strict=True))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    last = len(head) - 1

    def text(row: Sequence[str]) -> str:
        cells = [cell.ljust(w) if i in (0, last) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return [text(head), *(text(row) for row in rows)]


def _e(value: float | str, decimals: int = 4) -> str:
    """Return an epsilon as text, rounded up."""
    return rounded_up(value, decimals, fixed=True)
