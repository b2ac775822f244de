"""Weights that a model begins with, from a folder of safetensors files as the Hugging Face hub lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError, raised

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Names that a message lists before it only counts the others.
_SHOWN = 3


def load_weights(model: nn.Module, folder: str) -> None:
    """Copy a folder's tensors into the model's parameters and buffers of the same names, in the model's own types of numbers.

    The folder holds ``model.safetensors``, or ``model.safetensors.index.json`` and the files that its ``weight_map`` names. Of parameters that
    share memory (tied weights) one name suffices.

    Args:
        model: with all parameters in place.
        folder: on this machine.

    Raises:
        ConfigError: a file is missing or damaged, or the names or shapes are not the model's.
    """
    state = model.state_dict(keep_vars=True)
    files = _files(Path(folder))
    headers = {path: _header(path) for path in files}
    found = {name: path for path, (header, _) in headers.items() for name in header}
    given = {state[name].data_ptr() for name in found if name in state}
    missing = [name for name, tensor in state.items() if name not in found and tensor.data_ptr() not in given]
    extra = [name for name in found if name not in state]
    if missing or extra:
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model does not have" if extra else ""
        raise ConfigError(
            f"model.weights: {folder} {' and '.join(filter(None, (lacks, holds)))}; give the weights of this model under its own "
            "state_dict's names."
        )
    with torch.no_grad():
        for path, (header, start) in headers.items():
            for name, values in _tensors(path, header, start):
                if values.shape != state[name].shape:
                    raise ConfigError(
                        f"model.weights: '{name}' in {path} has shape {tuple(values.shape)}, but the model's has {tuple(state[name].shape)}; "
                        "make the model of the weights' sizes."
                    )
                state[name].copy_(values)


def _files(folder: Path) -> list[Path]:
    if (folder / _FILE).is_file():
        return [folder / _FILE]
    index = folder / _INDEX
    if not index.is_file():
        raise ConfigError(
            f"model.weights: {folder} holds neither {_FILE} nor {_INDEX}; name a folder that does, by an absolute path where actors run elsewhere."
        )
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"model.weights: {index} cannot be read ({raised(error)}); fetch it again.") from error
    return [folder / str(name) for name in sorted(names)]


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Each tensor's type, shape and place in the file, and where the first one begins, in bytes."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != path.stat().st_size:
            raise ValueError("its length is not the one that its header says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"model.weights: {path} cannot be read as safetensors ({raised(error)}); fetch it again.") from error
    return header, 8 + length


def _tensors(path: Path, header: dict[str, Any], start: int) -> Iterator[tuple[str, Tensor]]:
    """Name and values, one tensor in memory at a time."""
    with path.open("rb") as file:
        for name, entry in header.items():
            kind = _TYPES.get(entry["dtype"])
            if kind is None:
                raise ConfigError(
                    f"model.weights: '{name}' in {path} is of type {entry['dtype']}; use one of {', '.join(_TYPES)} (quantised weights are not read)."
                )
            first, last = entry["data_offsets"]
            file.seek(start + first)
            values = torch.frombuffer(bytearray(file.read(last - first)), dtype=kind) if last > first else torch.empty(0, dtype=kind)
            try:
                yield name, values.reshape(entry["shape"])
            except RuntimeError as error:
                raise ConfigError(f"model.weights: '{name}' in {path} is not as long as its shape says; fetch the file again.") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
