"""The device that an actor trains on, and how arrays get there."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import Any

import numpy.typing as npt
import ray
import torch
from torch import Tensor

from fedray.clients.memory import out_of_memory
from fedray.data.records import Records


def device_of_actor() -> str:
    """``cuda:N``, the first GPU that Ray gave this actor, else ``cpu``.

    An actor without GPUs still sees all of the node's (Ray leaves CUDA_VISIBLE_DEVICES as it was), so
    ``torch.cuda.is_available()`` would be the wrong question. Ray shows an actor its own GPUs only, of which the first is ``cuda:0``, unless
    the cluster forbids that (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES); torch then numbers all that are visible.
    """
    granted = ray.get_runtime_context().get_accelerator_ids().get("GPU") if ray.is_initialized() else None
    if not granted or not torch.cuda.is_available():
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    return f"cuda:{names.index(granted[0]) if granted[0] in names else 0}"


def end_if_lost(error: BaseException) -> None:
    """End the process where an error says that its device can no longer be used, so that a new actor takes its place.

    After such an error every call of the device fails, whoever's turn it is. A lack of memory is none.
    """
    if isinstance(error, getattr(torch, "AcceleratorError", ())) and not out_of_memory(error):  # the class is of torch 2.8 and later
        traceback.print_exc()
        os._exit(1)


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
