"""Running out of memory: telling it from other faults, and going on with smaller physical batches."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from ray.exceptions import OutOfMemoryError

from fedray.errors import FedrayError
from fedray.privacy.csprng import Csprng, InsecureSeeded

T = TypeVar("T")

#: glibc's names for what it is told, and the bytes up to which blocks come from its own memory, and that it keeps.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 2**26), (-1, 2**28)

#: Besides torch's own OutOfMemoryError: what the CPU's allocators say, and CUDA and cuBLAS where memory runs out beside torch's allocator, as
#: they often do on a GPU that others use, too. cuBLAS says of a handle for which there is no memory that it is "not initialized".
_WORDS = (
    *("can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc"),
    *("cuda error: out of memory", "alloc_failed", "cublas_status_not_initialized"),
)
_MONITOR = "low on memory"  # of Ray's memory monitor, in the error of the actor that it killed


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees for its next use; elsewhere nothing.

    Left to itself it gives blocks of some MB back to the kernel at each step, and takes them again page by page, which costs as
    much as the arithmetic of a small model (measured: half of the time of ``lockstep``).
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is not None:
        for name, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            tell(name, value)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error in this process means that memory, of the machine or of a GPU, ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def killed_for_memory(error: BaseException) -> bool:
    """Whether an actor was ended by Ray because its node ran out of memory. The kernel's own killer leaves no word."""
    return isinstance(error, OutOfMemoryError) or _MONITOR in str(error)


def fitting(train: Callable[[int], T], batch: int, whole: str | None = None) -> tuple[T, int]:
    """Call ``train`` with a physical batch, halved until memory suffices.

    Args:
        train: trains with a physical batch.
        batch: the first.
        whole: why a batch must not be computed in parts, as a clause; None where it may be.

    Returns:
        What it returned, and the batch that fitted.

    Raises:
        FedrayError: memory does not suffice, and the batch must not be computed in parts.
        Exception: as ``train`` does; for memory only where a batch of one record does not fit.
    """
    while True:
        try:
            return train(batch), batch
        except Exception as error:
            if batch <= 1 or not out_of_memory(error):
                raise
            if whole is not None:
                raise FedrayError(
                    f"training.batch_size: memory does not suffice for a batch, and it cannot be computed in parts because {whole}; make it smaller, "
                    "or give the client more memory."
                ) from error
        # Only here, where the error and with it the failed step's tensors are gone.
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        batch = -(-batch // 2)


class Repeatable(Csprng):
    """A cryptographic source that can be started over within one client's turn.

    A turn that is tried again for want of memory must toss the coins that it tossed before. With fresh ones its batches would
    be drawn given that a larger one did not fit, which is another mechanism than the one that was charged. Nothing of the first
    try has left the process, so nothing is released twice. The key lives as long as the turn.
    """

    def __init__(self, key: bytes | None = None) -> None:
        super().__init__()
        self._key = os.urandom(32) if key is None else key
        self._cipher = Cipher(algorithms.AES(self._key), modes.CTR(bytes(16))).encryptor()

    def again(self) -> Repeatable:
        """The same stream from its start."""
        return Repeatable(self._key)


def turn_noise(insecure_seed: int | None, round_: int, client: int) -> Callable[[], Csprng | InsecureSeeded]:
    """Gives the source of one client's turn, from its start each time."""
    if insecure_seed is not None:
        return lambda: InsecureSeeded(insecure_seed, round_, client)
    return Repeatable().again
