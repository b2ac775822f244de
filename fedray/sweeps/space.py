"""The points of a sweep: which value each trial gives to each key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from fedray.config import Config
from fedray.configfile import resolve_config
from fedray.rng import generator
from fedray.sweepconfig import Dimension, SweepSection

#: A value for each dotted key of the space, in the order of the section.
Point = dict[str, Any]


def planned_points(section: SweepSection, seed: int) -> list[Point]:
    """The points of a sweep that is charged trial by trial: all combinations, or draws that follow from the seed."""
    if section.search == "grid":
        return list(combinations(section))
    return [draw(section, generator(seed, "sweep", trial).random) for trial in range(section.trials or 0)]


def draw(section: SweepSection, uniform: Callable[[], float]) -> Point:
    """One point of the space.

    Args:
        section: the sweep.
        uniform: returns a number that is uniform in [0, 1), anew with each call.
    """
    return {key: _value(values, uniform()) for key, values in section.space.items()}


def _value(values: Dimension, u: float) -> Any:
    if values.choice is not None:
        return values.choice[min(int(u * len(values.choice)), len(values.choice) - 1)]
    low, high = values.uniform or values.loguniform or (0.0, 0.0)
    x = low + u * (high - low) if values.uniform else math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    return min(max(float(f"{x:.6g}"), low), high)


def combinations(section: SweepSection) -> Iterator[Point]:
    """Every combination of listed values; an interval is represented by its middle."""
    lists = [[_value(v, 0.5)] if v.choice is None else v.choice for v in section.space.values()]
    for values in product(*lists):
        yield dict(zip(section.space, values, strict=True))


def overrides(point: Mapping[str, Any]) -> list[str]:
    """A point as overrides of a config, ``key=value``."""
    return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def at(config: Config, point: Mapping[str, Any], *more: str) -> Config:
    """The config of a trial: the base config without its sweep, at a point, with further overrides.

    Raises:
        ConfigError: a key or a value of the point is none of the config's.
    """
    return resolve_config(config, ["sweep=null", *overrides(point), *more])


def named(point: Mapping[str, Any]) -> str:
    """A point in a few words, such as ``clip 0.5, lr 8``; a key whose last part is not unique is written in full."""
    last = [key.rpartition(".")[2] for key in point]
    return ", ".join(
        f"{short if last.count(short) == 1 else key} {_shown(value)}" for (key, value), short in zip(point.items(), last, strict=True)
    )


def _shown(value: Any) -> str:
    return format(value, ".4g") if isinstance(value, float) else str(value)
