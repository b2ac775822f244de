"""Weights that a model begins with: from a folder of safetensors files as the Hugging Face hub lays them out, which a run's output directory is
as well, from one safetensors file, or from a graph that :mod:`fedray.tracking.modelfolder` saved (``.pt2``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
#: What the names of a model begin with where another module is around it, as for serving or for several inputs.
_AROUND = "model."


@dataclass(frozen=True)
class _Part:
    """One file's tensors: the shape and the type of each by its name, and a function that reads them one after the other."""

    path: Path
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[], Iterator[tuple[str, Tensor]]]


def load_weights(model: nn.Module, place: str) -> None:
    """Copy tensors into the model's parameters and buffers of the same names, in the model's own types of floats.

    A folder holds ``model.safetensors``, or ``model.safetensors.index.json`` and the files that its ``weight_map`` names. Of parameters that
    share memory (tied weights) one name suffices. Names that all begin with ``model.``, as in a model around this one, may do so.

    Args:
        model: with all parameters in place.
        place: a folder, a safetensors file or a ``.pt2`` file on this machine.

    Raises:
        ConfigError: a file is missing or damaged, or the names, shapes or types are not the model's; it lists what differs.
    """
    state = model.state_dict(keep_vars=True)
    parts = [_part(path) for path in _files(Path(place))]
    found = {name: facts for part in parts for name, facts in part.tensors.items()}
    front = _AROUND if all(n.startswith(_AROUND) for n in found) and not any(n.startswith(_AROUND) for n in state) else ""
    found = {name.removeprefix(front): facts for name, facts in found.items()}
    given = {state[name].data_ptr() for name in found if name in state}
    missing = [name for name, tensor in state.items() if name not in found and tensor.data_ptr() not in given]
    extra = [name for name in found if name not in state]
    if missing or extra:
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model does not have" if extra else ""
        raise ConfigError(
            f"model.weights: {place} {' and '.join(filter(None, (lacks, holds)))}; give the weights of this model under its own "
            "state_dict's names."
        )
    differences = [text for name, (shape, kind) in found.items() if (text := _difference(name, shape, kind, state[name]))]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ConfigError(f"model.weights: in {place} {'; '.join(differences[:_SHOWN])}{more}; make the model of the weights' sizes.")
    with torch.no_grad():
        for part in parts:
            for name, values in part.read():
                state[name.removeprefix(front)].copy_(values)


def _difference(name: str, shape: tuple[int, ...], kind: torch.dtype, wanted: Tensor) -> str:
    if shape != tuple(wanted.shape):
        return f"'{name}' has shape {shape}, but the model's has {tuple(wanted.shape)}"
    if kind.is_floating_point != wanted.is_floating_point():
        return f"'{name}' is {str(kind).removeprefix('torch.')}, but the model's is {str(wanted.dtype).removeprefix('torch.')}"
    return ""


def _part(path: Path) -> _Part:
    if path.suffix == ".pt2":
        try:
            tensors = dict(torch.export.load(path).state_dict)
        except Exception as error:
            raise ConfigError(f"model.weights: {path} cannot be read as a saved graph ({raised(error)}); fetch it again.") from error
        return _Part(path, {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}, lambda: iter(tensors.items()))
    header, start = _header(path)
    facts = {name: (tuple(entry["shape"]), _type(path, name, entry)) for name, entry in header.items()}
    return _Part(path, facts, lambda: _tensors(path, header, start))


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if (folder / _FILE).is_file():
        return [folder / _FILE]
    index = folder / _INDEX
    if not index.is_file():
        raise ConfigError(
            f"model.weights: {folder} holds neither {_FILE} nor {_INDEX}; name a folder that does, or a safetensors file, by an absolute path where actors "
            "run elsewhere."
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


def _type(path: Path, name: str, entry: Mapping[str, Any]) -> torch.dtype:
    kind = _TYPES.get(entry["dtype"])
    if kind is None:
        raise ConfigError(
            f"model.weights: '{name}' in {path} is of type {entry['dtype']}; use one of {', '.join(_TYPES)} (quantised weights are not read)."
        )
    return kind


def _tensors(path: Path, header: dict[str, Any], start: int) -> Iterator[tuple[str, Tensor]]:
    """Name and values, one tensor in memory at a time."""
    with path.open("rb") as file:
        for name, entry in header.items():
            kind = _type(path, name, entry)
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
