"""What may leave a silo of what its client says: facts that the policy does not name are withheld, so that the run goes on without them.

``records``: numbers of records; without it they are told as 1. ``class_counts``, ``loss``: None without. ``timings``: durations, 0 without.
``errors``: the texts of failures, which may quote records; without it the silo's log alone has them. ``host``: name, process, device and what
fitted into its memory. The form of the records (shapes, names of columns) always leaves: the silos must agree on a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedray.clients.messages import ClientReport, HostInfo, LocalEvaluation
from fedray.data.silos import Silo
from fedray.errors import BudgetReached, ClaimVoid, FedrayError, LedgerError, PrivacyRefusal, Stopped
from fedray.silos.policyconfig import Fact
from fedray.spans import Span

#: What is said in place of an error's text.
HIDDEN = "it failed at the silo, whose log says why"
#: Turns that ended by something that their records may have caused, and that a text could quote.
_BY_RECORDS = ("failed", "rejected")
#: Errors whose texts have nothing of records: what fedray itself says of charges and settings.
_HARMLESS = (PrivacyRefusal, BudgetReached, LedgerError, ClaimVoid, Stopped)


class PolicyRefused(FedrayError):
    """A silo does not take part, or does not do what an order asks; the text says by which line of its policy."""


def leaving(answer: Any, facts: Sequence[Fact]) -> Any:
    """What may leave of an answer, or of a list or tuple of answers."""
    if isinstance(answer, ClientReport):
        return _report(answer, facts)
    if isinstance(answer, HostInfo):
        return _host(answer, facts)
    if isinstance(answer, LocalEvaluation):
        records = answer.records if "records" in facts else 1
        failed = answer.failed if "errors" in facts else dict.fromkeys(answer.failed, HIDDEN)
        return replace(answer, records=records, failed=failed)
    if isinstance(answer, list) and answer and isinstance(answer[0], Span):
        return answer if "timings" in facts else []
    if type(answer) is tuple:
        return tuple(leaving(each, facts) for each in answer)
    if isinstance(answer, list):
        return type(answer)(leaving(each, facts) for each in answer)
    return answer


def told(error: BaseException, facts: Sequence[Fact]) -> FedrayError:
    """What may leave of an error of the client's process, without its traceback."""
    if isinstance(error, FedrayError) and ("errors" in facts or isinstance(error, (PolicyRefused, *_HARMLESS))):
        return type(error)(*error.args)
    if "errors" in facts:
        return FedrayError(f"{type(error).__name__}: {error}")
    kind = type(error) if isinstance(error, FedrayError) else FedrayError
    return kind(f"{HIDDEN} ({type(error).__name__}).")


def _report(report: ClientReport, facts: Sequence[Fact]) -> ClientReport:
    changed: dict[str, Any] = {}
    if "records" not in facts:
        changed["records"] = 0
    if "timings" not in facts:
        changed["seconds"] = 0.0
    if "loss" not in facts:
        changed["loss"] = None
    if "host" not in facts:
        changed |= {"node": "", "physical_batch": None}
    if "errors" not in facts:
        changed["traceback"] = ""
        if report.status in _BY_RECORDS:
            changed["error"] = HIDDEN
    return report._replace(**changed)


def _host(info: HostInfo, facts: Sequence[Fact]) -> HostInfo:
    changed: dict[str, Any] = {}
    if "class_counts" not in facts:
        changed["class_counts"] = None
    if "host" not in facts:
        changed |= {"node": "silo", "pid": 0, "device": "cpu", "threads": 1}
    if info.silo is not None and "records" not in facts:
        changed["silo"] = _uncounted(info.silo)
    if "errors" not in facts and info.changed:
        changed["changed"] = f"the records are not as registered ({HIDDEN})"
    return replace(info, **changed)


def _uncounted(silo: Silo) -> Silo:
    """A silo's description with every number of records as 1, and none where there is none."""
    persons = None if silo.persons is None else 1
    return replace(silo, records=1, held_out=min(1, silo.held_out), persons=persons, dropped=0)
