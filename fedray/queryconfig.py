"""The config of a query: the sections of a run that it shares, and the statistics that it asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator, model_validator

from fedray.choices import Choice, ModelChoice
from fedray.config import Config, Training
from fedray.configfile import is_query, resolve_config

_KEYS = ("name", "experiment", "seed", "data", "clients", "privacy", "tracking", "ray", "queries", "judged")


class QueryChoice(Choice):
    """One statistic. Other keys are the arguments of its kind."""

    kind: str = Field(description="Which statistic; see `fedray list queries`.")
    weight: float = Field(
        1.0, gt=0.0, description="Share of the budget, relative to the other statistics: twice the share, noise 0.71 times."
    )
    records: Literal["train", "held_out"] | None = Field(
        None, description="Which of a client's records; null = held_out for what judges a model, else train."
    )


class QueryConfig(Config):
    """A run that trains nothing and asks the clients for statistics."""

    rounds: int = 1
    model: ModelChoice = ModelChoice(kind="none")
    training: Training = Training()
    queries: dict[str, QueryChoice] = Field(min_length=1, description="The statistics by their names; all are released together.")
    judged: str | None = Field(
        None, description="Directory of a finished run, whose model the statistics judge (confusion_matrix, roc, ...)."
    )

    @field_validator("queries")
    @classmethod
    def _named(cls, queries: dict[str, QueryChoice]) -> dict[str, QueryChoice]:
        for name in queries:
            if not name or not all(c.isalnum() or c in "_-" for c in name):
                raise ValueError(f"'{name}' should consist of letters, digits, _ and -")
        return queries

    @model_validator(mode="after")
    def _only_asks(self) -> QueryConfig:
        unread = sorted(self.model_fields_set - set(_KEYS))
        if unread:
            raise ValueError(f"{unread[0]}: belongs to training, and a query does not read it; take it out")
        return self


def load_query(path: str | Path, overrides: Sequence[str] = ()) -> QueryConfig:
    """Read the config of a query; see :func:`fedray.configfile.resolve_config`."""
    return resolve_config(path, overrides, schema=QueryConfig)


def dump_query(config: QueryConfig) -> str:
    """The resolved config as YAML, without the sections that a query does not read."""
    return yaml.safe_dump(json.loads(config.model_dump_json(include=set(_KEYS))), sort_keys=False, allow_unicode=True)


__all__ = ["QueryChoice", "QueryConfig", "dump_query", "is_query", "load_query"]
