"""Small configs that the audit's tests audit."""

from __future__ import annotations

from paths import ROOT
from torch import nn

from fedray.config import Config
from fedray.configfile import load_config


def digits(*overrides: str) -> Config:
    """The quickstart's config with few rounds, no tracking, and overrides."""
    return load_config(
        ROOT / "configs" / "digits.yaml",
        [
            "rounds=4",
            "tracking.enabled=false",
            "ray.address=local",
            "privacy.target_epsilon=null",
            "privacy.noise_multiplier=2.0",
            *overrides,
        ],
    )


def no_bias(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A network whose first layer has no bias to divide by."""
    return nn.Sequential(nn.Linear(input_shape[0], 16, bias=False), nn.ReLU(), nn.Linear(16, outputs))
