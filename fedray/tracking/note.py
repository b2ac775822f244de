"""The descriptions of a run and of its model's version in MLflow, in Markdown: result, epsilon and claim first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.rounding import as_given, claim_text, rounded_up
from fedray.tracking.journal import number
from fedray.tracking.rundata import unit_of, unit_text
from fedray.tracking.starts import StartNote

#: Beginning of the tag ``fedray.ending`` while the run goes on.
UNDER_WAY = "under way"

_PAGES = {
    "report.html": "the whole run on one page",
    "privacy_statement.md": "what is claimed, against whom, under which assumptions",
    "clients/clients.json": "records, epsilon and remaining budget of each client",
    "config.yaml": "the resolved config",
}


def run_note(
    quality: str | None,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    tags: Mapping[str, str],
    params: Mapping[str, str],
    partition: Mapping[str, Any],
    starts: Sequence[StartNote],
    pages: Sequence[str] = (),
) -> str:
    """Return a run's description.

    Args:
        quality: the metric that the run is judged by.
        rows: one for each round so far.
        summary: content of ``summary.json``; empty while the run goes on, or if its driver was lost.
        tags: of the MLflow run.
        params: of the MLflow run.
        partition: content of ``partition.json``.
        starts: of the run.
        pages: paths of its artifacts.
    """
    ending = tags.get("fedray.ending", UNDER_WAY)
    result = known_result(quality, rows, summary)
    first = [f"**{result}**" if result else "", *privacy_parts(summary, rows)]
    if summary.get("status") != "completed":
        first.insert(0, f"**{ending[0].upper()}{ending[1:].split('; ')[0]}**")
    lines = [" · ".join(part for part in first if part), ""]
    if summary:
        lines += [f"*Ended:* {ending}.", ""]
    lines += [f"*Epsilon:* {said}.", ""] if (said := beyond_rows(rows, summary)) else []
    lines += [f"*What:* {_what(params, partition)}.", ""]
    evaluated = (summary.get("privacy") or {}).get("evaluation")
    lines += [f"*Evaluation:* {evaluated['said']}; its figures carry that noise.", ""] if evaluated else []
    lines += [f"*Faults:* {_faults(summary, tags)}.", ""]
    lines += ["*Attack:* " + str(summary["attack"]), ""] if summary.get("attack") else []
    lines += _how(tags, params, starts)
    shown = [f"`{page}`: {text}" for page, text in _PAGES.items() if page in pages]
    lines += ["*Artifacts:* " + "; ".join(shown) + ".", ""] if shown else []
    hashes = (("model", summary.get("model_sha256")), ("ledger", (summary.get("privacy") or {}).get("ledger_sha256")))
    lines += [f"*SHA-256 of the {label}:* `{value}`" for label, value in hashes if value]
    return "\n".join(lines).rstrip() + "\n"


def privacy_parts(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The privacy of a run in short texts: a void claim before epsilon, a valid one behind it; without a summary what ``rows`` say of it."""
    private = summary.get("privacy") or {}
    if not summary:
        spent = _last("privacy/epsilon", rows)
        return [] if spent is None else [f"epsilon {rounded_up(spent[1])} after round {spent[0]}, for which nothing is claimed yet"]
    if private.get("epsilon") is None:
        return ["no differential privacy"]
    lines = [line for line in (private, private.get("joint")) if line]
    figures = " and ".join(_figure(line) for line in lines)
    claim = claim_text(private)
    return [figures, f"claim {claim}"] if private.get("claim") == "valid" else [f"**claim {claim}**", figures]


def version_note(summary: Mapping[str, Any], result: str, run_name: str, tags: Mapping[str, str]) -> str:
    """Return the description of a registered model's version.

    Args:
        summary: content of ``summary.json``.
        result: see :func:`known_result`.
        run_name: name of the MLflow run.
        tags: of the version.
    """
    ending = tags.get("ending", "not finished")
    # Without marks of Markdown, because MLflow's list of versions shows it as it is.
    stopped = "" if summary.get("status") == "completed" else f"{ending[0].upper()}{ending[1:].split('; ')[0]}"
    first = " · ".join(part for part in (stopped, result, *privacy_parts(summary)) if part)
    lines = [first, f"Trained by fedray in run {run_name}: {ending}.", tags.get("attack", "")]
    lines.append(tags.get("statement", ""))
    if "ledger_sha256" in tags:
        lines.append(f"Ledger SHA-256: `{tags['ledger_sha256']}`.")
    lines.append(f"The whole statement: {tags['privacy_statement']}." if "privacy_statement" in tags else "")
    return "\n\n".join(line for line in lines if line)


def result_text(quality: str | None, values: Mapping[str, Any]) -> str:
    """The final value of the metric that a run is judged by, as ``accuracy 0.9111``; empty if there is none."""
    value = number(values.get(quality)) if quality else None
    return "" if value is None else f"{str(quality).removeprefix('eval/')} {value:.4g}"


def known_result(quality: str | None, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The final result as :func:`result_text`; without one the last that is known, with its round; empty if there is none."""
    if summary.get("final") or quality is None:
        return result_text(quality, summary.get("final") or {})
    last = _last(quality, rows)
    return "" if last is None else f"{result_text(quality, {quality: last[1]})} after round {last[0]}"


def beyond_rows(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """A clause for a run whose epsilon is above that of its last row, because of a round that was charged and not finished; else empty."""
    last, total = _last("privacy/epsilon", rows), number((summary.get("privacy") or {}).get("epsilon"))
    if last is None or total is None or total <= last[1] or rounded_up(total) == rounded_up(last[1]):
        return ""
    return f"{rounded_up(last[1])} after round {last[0]}; what was charged later and not finished brings it to {rounded_up(total)}"


def _last(metric: str, rows: Sequence[Mapping[str, Any]]) -> tuple[int, float] | None:
    """The last round that has a finite value of a metric, and the value."""
    found = ((int(row["round"]), number(row["metrics"].get(metric))) for row in reversed(rows))
    return next(((round_, value) for round_, value in found if value is not None), None)


def _figure(line: Mapping[str, Any]) -> str:
    budget = "" if line.get("budget") is None else f" of {as_given(line['budget'])}"
    text = f"epsilon {rounded_up(line['epsilon'])}{budget} at delta {as_given(line.get('delta'))} for {unit_text(unit_of(line))}"
    if line.get("epsilon_unamplified") not in (None, line["epsilon"]):
        text += f" (rests on secret cohorts; {rounded_up(line['epsilon_unamplified'])} without)"
    return text


def _what(params: Mapping[str, str], partition: Mapping[str, Any]) -> str:
    model, clients = params.get("model.kind", "a model"), partition.get("clients")
    size = (partition.get("model") or {}).get("parameters")
    parts = [model + (f" with {size:,} parameters" if isinstance(size, int) else ""), f"data {params.get('data.source', 'not named')}"]
    dealt = params.get("data.partition.kind", "natural")
    parts.append((f"{clients:,} clients" if isinstance(clients, int) else "clients") + ("" if dealt == "natural" else f" dealt by {dealt}"))
    parts.append(f"cohort {params.get('cohort.kind', 'all')}")
    parts.append(f"algorithm {params.get('algorithm.kind', 'fedavg')}")
    if params.get("privacy.regime", "none") != "none":
        noise = params.get("privacy.noise_multiplier")
        parts.append(f"privacy regime {params['privacy.regime']}" + (f" with noise multiplier {noise}" if noise else ""))
    return ", ".join([*parts, f"seed {params.get('seed', '0')}"])


def _faults(summary: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    counted = [f"{count} {name.replace('_', ' ')}" for name, count in (summary.get("faults") or {}).items() if count]
    odd = [f"not finite: {tags['fedray.not_finite']}"] if "fedray.not_finite" in tags else []
    left = (summary.get("privacy") or {}).get("clients_exhausted")
    out = [f"{left} clients left out of rounds, for their budget was used up"] if left else []
    return ", ".join([*counted, *odd, *out]) or ("none" if summary else "not known yet")


def _how(tags: Mapping[str, str], params: Mapping[str, str], starts: Sequence[StartNote]) -> list[str]:
    """How to run it again."""
    command = (starts[0].origin.get("command") if starts else None) or tags.get("fedray.command")
    if not command:
        return []
    commit, clean = tags.get("fedray.commit"), tags.get("fedray.clean") == "true"
    lines = ["*Reproduce:*", "", "```"]
    if commit:
        lines.append(f"git checkout {commit}" + ("" if clean else "   # and changes that were not committed"))
    return [*lines, str(command), "```", ""]
