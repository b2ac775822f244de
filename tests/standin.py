"""A second device for machines without a GPU: torch device ``standin:0``, whose memory is the host's.

Code that mixes devices fails on it as it does on a GPU: tensors on ``standin`` and on the CPU do not go together (but for
single numbers and indices, as on a GPU), and NumPy cannot read it. Every operation is computed by the CPU, so
results must be the CPU's to the last bit. It must be registered before the process has run a backward pass, so
the tests that use it run in a process of their own.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "standin"
_AUTOCAST = "AutocastPrivateUse1"

#: How often something was asked of the device as a whole: its generator read, set or seeded.
CALLS: Counter[str] = Counter()

_DLPACK_CPU, _DLPACK_EXTENSION = 1, 12
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_libraries: list[Any] = []

_aten = torch.ops.aten
_CROSSING = (_aten._copy_from.default, _aten._to_copy.default, _aten.copy_.default, _aten.index.Tensor, _aten.index.Tensor_out)


class _Module(backend_registration._DummyBackendModule):
    def manual_seed_all(self, seed: int) -> None:
        CALLS["manual_seed_all"] += 1

    def get_rng_state(self, device: Any = 0) -> Tensor:
        CALLS["get_rng_state"] += 1
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        CALLS["set_rng_state"] += 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Make the device known to torch, once a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    fallback, kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(_compute, "PrivateUse1")
    fallback.fallback(torch.library.fallthrough_kernel, _AUTOCAST)
    for op in (_aten.linear.default, _aten.conv2d.default):
        kernels.impl(op, partial(_lowered, op), _AUTOCAST)
    kernels.impl("convolution_overrideable", lambda *a: _compute(_aten.convolution.default, *a), "PrivateUse1")
    kernels.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    _libraries.extend((fallback, kernels))
    # A model that moves keeps its parameter objects, as it does on its way to a GPU, so that layers that share one go on sharing it.
    torch.__future__.set_swap_module_params_on_conversion(True)


def _lowered(op: Any, *args: Any) -> Any:
    """What autocast does on the devices that torch knows."""
    lower = torch.get_autocast_dtype(NAME)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST))):
        return op(*(a.to(lower) if isinstance(a, Tensor) else a for a in args))


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    *settings, mask = rest
    return _compute(_aten.convolution_backward.default, gradient, x, weight, None, *settings, mask)


def _relabelled(tensor: Tensor, device: int) -> Tensor:
    """The same memory under another device: a DLPack capsule whose device field is overwritten (it follows the data pointer)."""
    capsule = torch._C._to_dlpack(tensor.detach())
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = device
    return torch._C._from_dlpack(capsule)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return target.copy_(source)


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [a for a in flat if isinstance(a, Tensor)]
    if op not in _CROSSING and any(t.device.type == "cpu" and t.dim() for t in tensors) and any(t.device.type == NAME for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {op} was given tensors on {NAME} and on cpu.")
    args = tuple(
        torch.tensor(a) if isinstance(a, int | float) and str(s.type) == "Tensor" else a
        for a, s in zip(args, op._schema.arguments, strict=False)
    )
    flat, spec = pytree.tree_flatten((args, kwargs))
    on_cpu: dict[int, tuple[Tensor, Tensor]] = {}

    def down(value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type == NAME:
            # Results are allocated empty and grow, which borrowed memory cannot.
            twin = _relabelled(value, _DLPACK_CPU) if value.numel() else torch.empty(value.shape, dtype=value.dtype)
            on_cpu[id(twin)] = (value, twin)
            return twin
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def up(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        return on_cpu[id(value)][0] if id(value) in on_cpu else _relabelled(value, _DLPACK_EXTENSION)

    cpu_args, cpu_kwargs = pytree.tree_unflatten([down(a) for a in flat], spec)
    result = (_copy if op is _aten._copy_from.default else op)(*cpu_args, **cpu_kwargs)
    for value, twin in on_cpu.values():
        if twin.shape != value.shape:
            value.data = _relabelled(twin, _DLPACK_EXTENSION)
    return pytree.tree_map(up, result)
