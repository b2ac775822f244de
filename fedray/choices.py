"""What sections of a config are made of, and how a section names a part."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Unknown keys are refused, values are not coerced across types, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Choice(Section):
    """A named part with its own arguments beside ``kind``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    kind: str = Field(description="A built-in (see `fedray list`) or python:package.module:name.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything beside ``kind``."""
        return dict(self.model_extra or {})


class ModelChoice(Choice):
    """The model: its factory, and what is done to what the factory makes. Other keys are the factory's arguments."""

    weights: str | None = Field(
        None,
        description="Folder with the weights to begin with: model.safetensors, or the files of model.safetensors.index.json, whose names are "
        "the model's own. null: as the factory draws them.",
    )
    adapters: Choice | None = Field(
        None, description="What is trained in place of the model's own parameters, which are then frozen (see `fedray list adapters`)."
    )
