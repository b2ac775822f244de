"""Frozen parameters (``requires_grad`` False): the fixed part of a model, as in fine-tuning.

They are not in the exchanged vector, so they are in no update, sum, noise or checkpoint. Every process builds them by the model's factory,
which runs under the run's seed; a digest shows whether it has built the same ones. The saved model contains them with the trained ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedray.errors import ConfigError
from fedray.parameters import Values, Vector, fingerprint

if TYPE_CHECKING:
    from torch import nn

#: NumPy types of frozen parameters that a saved model can hold.
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def frozen_values(model: nn.Module, kind: str = "") -> dict[str, Values]:
    """Return the frozen parameters by name, in ``state_dict`` order; on the CPU they share the model's memory.

    Args:
        model: any model.
        kind: the config's name of the model, for messages.

    Raises:
        ConfigError: a frozen parameter has a type that a saved model cannot hold.
    """
    from torch import nn

    found: dict[str, Values] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, nn.Parameter) or tensor.requires_grad:
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ConfigError(
                f"model.kind: frozen parameter {name} of '{kind}' is {dtype}, which a saved model cannot hold; make it float32 (exact for bfloat16)."
            )
        found[name] = tensor.detach().cpu().contiguous().numpy()
    return found


def frozen_digest(model: nn.Module, kind: str = "") -> str:
    """Return the SHA-256, hexadecimal, of names, types, shapes and bytes of the frozen parameters; empty if nothing is frozen.

    Raises:
        ConfigError: see :func:`frozen_values`.
    """
    values = frozen_values(model, kind)
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(f"{name} {value.dtype.name} {value.shape}\n".encode())
        digest.update(value.astype(value.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
    return digest.hexdigest() if values else ""


def around(frozen: Mapping[str, Values]) -> tuple[dict[str, Values], dict[str, Values]]:
    """Split frozen parameters into those that a file has before and behind the trained float32 values.

    Types with more bytes come first, so that each tensor is aligned.
    """
    ordered = dict(sorted(frozen.items(), key=lambda item: -item[1].itemsize))
    before = {name: value for name, value in ordered.items() if value.itemsize > 4}
    return before, {name: value for name, value in ordered.items() if value.itemsize <= 4}


def model_digest(weights: Vector, frozen: Mapping[str, Values]) -> str:
    """Return the SHA-256, hexadecimal, of the bytes of all tensors of a model in the order of its file."""
    before, behind = around(frozen)
    return fingerprint(*before.values(), weights, *behind.values())


def check_frozen(model: nn.Module, kind: str, expected: str | None) -> None:
    """Check that a model's frozen parameters are those with which the run began.

    Args:
        model: a model that was built in this process.
        kind: the config's name of the model.
        expected: digest of the run's frozen parameters; None if it is not known.

    Raises:
        ConfigError: the model's frozen parameters are others.
    """
    found = frozen_digest(model, kind) if expected is not None else None
    if found != expected:
        raise ConfigError(
            f"model.kind: '{kind}' made other frozen parameters here (sha256 {found or 'of none'}) than where the run began "
            f"({expected or 'none'}); a factory must make the same ones in every process: draw them from torch's, numpy's or random's "
            "global generator, which are seeded from the run's seed, or read them from a file that is the same on every node."
        )
