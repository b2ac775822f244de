"""What a silo answers in place of what its policy refuses, where the run can go on without it: it takes no part, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from fedray.aggregation.each import Rows
from fedray.clients.messages import ClientReport, ClientTask, NoisedEvaluation, PartialSum, RoundTask
from fedray.exchange import Exchange
from fedray.privacy.account import Decision
from fedray.privacy.refusal import Refusal


def refused_answer(client: str, method: str, arguments: Sequence[Any], text: str, exchange: Exchange | None) -> Any:
    """The answer; None where there is none, and the order fails.

    Args:
        client: the silo's name.
        method, arguments: of the order.
        text: of the refusal.
        exchange: the run's fields, once they are known.
    """
    if method == "authorize":
        return Decision([], {client: cast(Refusal, text)})
    if method == "evaluate":
        return []
    if method == "evaluate_noised":
        return [NoisedEvaluation(client, problem=text)]
    if method == "consult":
        return dict.fromkeys(arguments[2], text)
    if method not in ("train", "train_and_hand_over", "train_each") or exchange is None:
        return None
    task, reports = arguments[0], _reports(arguments[2], text)
    if method == "train":
        return reports
    if method == "train_and_hand_over":
        return reports, _nothing(task, exchange)
    return [reports, *Rows(task.size(exchange)).cut(max(1, task.segments))]


def _reports(clients: Sequence[ClientTask], text: str) -> list[ClientReport]:
    return [ClientReport(c.index, c.name, "refused", c.attempt, error=text) for c in clients]


def _nothing(task: RoundTask, exchange: Exchange) -> PartialSum:
    """A part to which nobody has added anything."""
    return PartialSum(task.round, task.empty_part(exchange), sparse=task.sparse)
