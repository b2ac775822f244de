"""The stages of a run in their order, and what an update and a client's state are after all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Integral
from typing import Any, get_args

import numpy as np

from fedray import components
from fedray.choices import Choice
from fedray.config import Config
from fedray.errors import ConfigError, FedrayError, UpdateRejected, blaming
from fedray.parameters import Vector
from fedray.updates.stage import At, Passed, Place, Source, Stage, Support

_FLOAT = 4
#: How the names of stages' vectors in a client's state begin; all others are the algorithm's.
_OF_STAGE = re.compile(r"stage\d+\.")


def make_stages(config: Config) -> tuple[Stage, ...]:
    """The stages that the config asks for: the one of ``compression``, then the one of ``bound``; those of privacy are not among them.

    Raises:
        ConfigError: unknown stage, wrong arguments, or no stage of that place.
    """
    found = (_made(part, room, place) for part, room, place in _sections(config))
    return tuple(stage for stage in found if stage is not None)


def rehearse(config: Config, size: int, source: Source) -> None:
    """Let a small update pass twice through each stage of the user's own, before anything is trained.

    Args:
        config: the run.
        size: number of values of an update.
        source: of what the stages draw.

    Raises:
        ConfigError: a stage fails, changes the number of values, or has terms that a receipt cannot hold.
        FedrayError: a stage does not do what it declares.
    """
    for part, room, place in _sections(config):
        if not components.is_own(part.kind):
            continue
        where = f"{room.path}: '{part.kind}'"
        stage, kept = _made(part, room, place), dict[str, Vector]()
        assert stage is not None
        with blaming(where):
            sent: Any = stage.sent(size, _FLOAT * size)
            terms, after = stage.terms(), stage.size(size)
        if not isinstance(sent, Integral) or sent < 0:
            raise ConfigError(f"{where} says that an update takes {sent!r} bytes; let sent() return a whole number.")
        if after != size:
            raise ConfigError(f"{where} makes {after} values of {size}; keep their number, and leave those at zero that are not sent.")
        try:
            json.dumps(terms)
        except (TypeError, ValueError):
            raise ConfigError(f"{where} has terms that are no JSON data, which receipts need; override terms().") from None
        for round_ in range(2):
            with blaming(where), suppress(UpdateRejected):
                passed = passed_all((stage,), np.full(size, 1e-3, dtype=np.float32), At(round_, 0, 0, source), kept)
                kept = dict(passed.state or {})


def _sections(config: Config) -> tuple[tuple[Choice, components.Room, Place], ...]:
    return (config.compression, components.COMPRESSIONS, "lossy"), (config.bound, components.BOUNDS, "bound")


def _made(part: Choice, room: components.Room, place: Place) -> Stage | None:
    section = room.path.partition(".")[0]
    if part.kind == "none":
        if part.arguments:
            raise ConfigError(f"{section}.{next(iter(part.arguments))}: kind is none, so it would do nothing; take it out, or name a kind.")
        return None
    made = components.made(room, part.kind, part.arguments)
    if not isinstance(made, Stage):
        raise ConfigError(f"{room.path}: '{part.kind}' is not derived from fedray.updates.stage.Stage (docs/stages.md shows how).")
    if made.place != place or made.integer or made.weighs:
        named = made.place if made.place in get_args(Place) else repr(made.place)
        raise ConfigError(f"{room.path}: '{part.kind}' declares the place {named}; this section takes a {place} stage of floats.")
    if made.support not in get_args(Support):
        raise ConfigError(f"{room.path}: '{part.kind}' declares the support {made.support!r}; give one of {', '.join(get_args(Support))}.")
    return made


def passed_all(stages: Sequence[Stage], update: Vector, at: At, kept: Mapping[str, Vector]) -> Passed:
    """An update after all stages, and what they keep for the client.

    Args:
        stages: in their order.
        update: float32 ``[size]``; unchanged.
        at: where in the run; the state in it is not used.
        kept: the client's state, with the vectors of each stage under names that begin with its position.

    Returns:
        What is added up, and the stages' vectors in the client's new state under such names, None if there are none.

    Raises:
        UpdateRejected: a stage cannot use the update.
        FedrayError: a stage does not do what it declares.
    """
    values, state = update, dict[str, Vector]()
    for number, stage in enumerate(stages):
        prefix = f"stage{number}."
        old = {name.removeprefix(prefix): vector for name, vector in kept.items() if name.startswith(prefix)}
        passed = stage.out(values, replace(at, state=old))
        if not (isinstance(passed, Passed) and isinstance(passed.values, np.ndarray)):
            raise FedrayError(f"{type(stage).__name__}: its out should return a Passed with an array of values.")
        expected = np.dtype(np.int64 if stage.integer else np.float32)
        if passed.values.dtype != expected or passed.values.shape != (stage.size(len(values)),):
            raise FedrayError(
                f"{type(stage).__name__}: gave {passed.values.dtype} {passed.values.shape} for an update of {len(values)} values where it "
                f"declares {expected} ({stage.size(len(values))},)."
            )
        new = old if passed.state is None else passed.state
        if new and not stage.state:
            raise FedrayError(f"{type(stage).__name__}: keeps a state, which it does not declare; let its property state be true.")
        values = passed.values
        state |= {prefix + name: vector for name, vector in new.items()}
    return Passed(values, state or None)


def of_algorithm(kept: Mapping[str, Vector] | None) -> dict[str, Vector] | None:
    """The vectors of a client's state that are not the stages'; None if there are none."""
    return {name: vector for name, vector in (kept or {}).items() if not _OF_STAGE.match(name)} or None


def sent_bytes(stages: Sequence[Stage], size: int) -> int:
    """Bytes that one update of ``size`` values takes on a wire after all stages."""
    sent = _FLOAT * size
    for stage in stages:
        sent, size = stage.sent(size, sent), stage.size(size)
    return sent


def keep_state(stages: Sequence[Stage]) -> bool:
    """Whether clients keep something for one of the stages."""
    return any(stage.state for stage in stages)
