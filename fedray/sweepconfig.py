"""The ``sweep`` section of a config: which settings are tried, how many, and how their privacy is paid for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fedray.choices import Section


def _or_a_list(schema: dict[str, Any]) -> None:
    section = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "array", "minItems": 1, "description": "The same as choice."}, section]


class Dimension(Section):
    """The values of one key: a list, or an interval. In a file a plain list stands for ``{choice: [...]}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), json_schema_extra=_or_a_list)

    choice: list[Any] | None = Field(None, min_length=1, description="These values.")
    uniform: list[float] | None = Field(None, min_length=2, max_length=2, description="[low, high]: uniform between them; search: random.")
    loguniform: list[float] | None = Field(
        None, min_length=2, max_length=2, description="[low, high], both above 0: uniform in the logarithm; search: random."
    )

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        return {"choice": values} if isinstance(values, list) else values

    @model_validator(mode="after")
    def _one(self) -> Dimension:
        if sum(v is not None for v in (self.choice, self.uniform, self.loguniform)) != 1:
            raise ValueError("give a list of values, or exactly one of choice, uniform and loguniform")
        for name, ends in (("uniform", self.uniform), ("loguniform", self.loguniform)):
            if ends is not None and (ends[0] >= ends[1] or (name == "loguniform" and ends[0] <= 0)):
                raise ValueError(f"{name}: {ends} is no interval [low, high]{' above 0' if name == 'loguniform' else ''}")
        return self


class SweepSection(Section):
    """Trials of one config with different settings, for ``fedray sweep`` (see docs/sweeps.md)."""

    space: dict[str, Dimension] = Field(
        min_length=1, description="Values by dotted key, e.g. {privacy.clip: [0.5, 1.0], training.lr: {loguniform: [0.1, 10]}}."
    )
    search: Literal["grid", "random"] = Field(
        "grid", description="grid: every combination of the lists. random: each trial draws its values independently."
    )
    trials: int | None = Field(None, ge=1, description="Number of trials; for search random, if price is charged.")
    price: Literal["charged", "sealed"] = Field(
        "charged",
        description="How private data is paid for. charged: every trial is charged to the same ledgers, and everything is shown. sealed: the "
        "number of trials is secret, only the best one is shown, and one smaller charge covers all (Papernot & Steinke 2022).",
    )
    mean: float | None = Field(None, gt=1.0, description="sealed: expected number of trials.")
    shape: float | None = Field(
        None,
        ge=0.0,
        le=100.0,
        description="sealed: shape of the number of trials (truncated negative binomial): 0 logarithmic, 1 geometric; null = 0.",
    )
    public: bool = Field(
        False, description="sealed: true says that the driver's test records, by which the best trial is chosen, are public. It must be so."
    )
    metric: str | None = Field(
        None, description="What trials are compared by, after their last round; null = the first of evaluation.metrics."
    )
    mode: Literal["max", "min"] | None = Field(None, description="Whether more or less of it is better; null = by the metric's name.")
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: trials that are behind the others are ended early (Li et al. 2020); not if sealed."
    )
    grace: int | None = Field(None, ge=1, description="asha: rounds that every trial may run; null = a ninth of the rounds.")
    concurrent: int = Field(1, ge=1, description="Trials at a time; each takes this fraction of the cluster.")

    @model_validator(mode="after")
    def _consistent(self) -> SweepSection:
        intervals = [key for key, values in self.space.items() if values.choice is None]
        if self.search == "grid" and intervals:
            raise ValueError(f"space.{intervals[0]}: an interval has no grid; give a list of values, or set search to random")
        if self.price == "sealed":
            self._sealed()
        elif self.mean is not None or self.shape is not None or self.public:
            raise ValueError("mean, shape, public: belong to price sealed; take them out, or set price to sealed")
        elif self.search == "random" and self.trials is None:
            raise ValueError("trials: search random needs a number of trials")
        elif self.search == "grid" and self.trials is not None:
            raise ValueError("trials: a grid has as many trials as combinations; take it out, or set search to random")
        if self.grace is not None and self.scheduler != "asha":
            raise ValueError("grace: belongs to scheduler asha; take it out, or set scheduler to asha")
        return self

    def _sealed(self) -> None:
        if self.search != "random":
            raise ValueError("search: a sealed sweep draws each trial's values independently of the other trials; set search to random")
        if self.mean is None:
            raise ValueError("mean: a sealed sweep draws its number of trials; give the expected number")
        if self.trials is not None:
            raise ValueError("trials: the number of trials of a sealed sweep is secret; take trials out, mean gives the expected number")
        if self.scheduler != "none":
            raise ValueError(
                "scheduler: asha compares what trials show on their way, and a sealed sweep shows nothing; set scheduler to none"
            )
        if not self.public:
            raise ValueError(
                "public: a sealed sweep shows the best trial's score, so the driver's test records must be public; set it to true to say that they are"
            )

    @property
    def number_shape(self) -> float:
        """The shape of the number of trials of a sealed sweep."""
        return self.shape or 0.0
