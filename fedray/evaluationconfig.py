"""The section ``evaluation.charged`` of a config: how figures of the clients' own records are released under privacy."""

from __future__ import annotations

from pydantic import Field

from fedray.choices import Section


class ChargedEvaluation(Section):
    """Noise on what clients tell of their own held-out records under record-level privacy; each evaluation is charged to each client."""

    noise_multiplier: float = Field(
        gt=0.0, description="Noise of one evaluation, over the most that one record changes its sums by; more noise costs less epsilon."
    )
    loss_bound: float | None = Field(None, gt=0.0, description="For loss and perplexity: a record's loss counts at most this much.")
    error_bound: float | None = Field(None, gt=0.0, description="For mae and rmse: a record's absolute error counts at most this much.")
    bins: int | None = Field(
        None, ge=2, le=1000, description="For auc and average_precision: bins of the scores that are counted; null = 20."
    )
