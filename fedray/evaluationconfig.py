"""The section ``evaluation`` of a config."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedray.choices import Resources, Section
from fedray.components import short_name


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


class FineTune(Section):
    """Local training of the global model at each client, for the evaluation alone: the clients' models are measured and thrown away.

    Source: Wang et al. 2019, Federated Evaluation of On-device Personalization; Yu, Bagdasaryan, Shmatikov 2020, Salvaging Federated Learning
    by Local Adaptation.
    """

    epochs: int | None = Field(None, ge=1, description="Passes over the client's training records; or give steps.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; or give epochs.")
    lr: float | None = Field(None, gt=0.0, description="Learning rate; null = training.lr, whatever its schedule.")

    @model_validator(mode="after")
    def _one(self) -> FineTune:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("epochs: give exactly one of epochs and steps")
        return self


class Evaluation(Section):
    """When and how the model is evaluated."""

    every: int = Field(1, ge=0, description="Evaluate in every so many rounds; 0 = once, at the end.")
    metrics: list[str] = Field(
        ["accuracy", "loss"],
        description="The first judges runs. See `fedray list metrics`, or python:module:function(outputs, targets); [] = no evaluation.",
    )
    federated: bool = Field(False, description="Also evaluate at the clients on their own held-out part; under privacy needs charged.")
    charged: ChargedEvaluation | None = Field(None, description="With privacy.regime=record: noise on what clients tell, which is charged.")
    fine_tune: FineTune | None = Field(
        None, description="Also evaluate the global model trained by each client; needs federated. null = not."
    )
    batch_size: int = Field(1000, ge=1, description="Records per evaluation batch.")
    resources: Resources = Field(Resources(cpu=0.0), description="What the evaluator actor asks of Ray.")

    @property
    def headline(self) -> str:
        """The figure that runs are judged by."""
        return f"eval/{short_name(self.metrics[0])}" if self.metrics else "eval/loss"
