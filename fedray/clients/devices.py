"""The device that an actor trains on, and how arrays get there."""

from __future__ import annotations

import warnings
from typing import Any

import numpy.typing as npt
import ray
import torch
from torch import Tensor

from fedray.data.records import Records


def device_of_actor() -> str:
    """``cuda:0`` where Ray gave this actor a GPU, else ``cpu``.

    An actor without GPUs still sees all of the node's (Ray leaves CUDA_VISIBLE_DEVICES as it was), so
    ``torch.cuda.is_available()`` would be the wrong question.
    """
    if ray.is_initialized() and ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return "cpu"


def in_actor() -> bool:
    """Whether this process is an actor's, and no command or test."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def node_of_actor() -> str:
    """What Ray calls this process' node; empty outside Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def on_device(records: Records, device: torch.device) -> tuple[Tensor, Tensor]:
    """Records and targets as tensors. Arrays from the object store are read-only views; engines only index them, never write."""
    return _shared(records.x).to(device), _shared(records.y).to(device)


def _shared(array: npt.NDArray[Any]) -> Tensor:
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)
