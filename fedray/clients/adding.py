"""How what a client sends gets into the sum of its actor: as it is, or clipped, noised and encoded where whole clients are protected."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from fedray.aggregation.exact import BLOCK, ExactSum
from fedray.algorithms.algorithm import Algorithm, Update
from fedray.algorithms.turn import Moved
from fedray.clients.messages import ClientTask, RoundTask
from fedray.errors import UpdateRejected
from fedray.exchange import MODEL, Exchange
from fedray.parameters import Vector
from fedray.privacy.csprng import noise_source

#: Weights from which an update is never made whole: a copy would leave the cache, and add as much memory to the actor as the model has.
_LARGE = 2**20


class Adding:
    """Adds updates of one actor's clients.

    Args:
        algorithm: gives the clients' weights.
        exchange: its fields.
        device: that the model is on.
        insecure_seed: see ``privacy.insecure_seed``.
    """

    def __init__(self, algorithm: Algorithm, exchange: Exchange, device: torch.device, insecure_seed: int | None) -> None:
        self._algorithm, self._exchange, self._device, self._insecure_seed = algorithm, exchange, device, insecure_seed

    def leaving(self, update: Update) -> Vector:
        """The fields of an update as one vector, float32 ``[up_size]``."""
        values = {name: value.vector() if isinstance(value, Moved) else value for name, value in update.values.items()}
        return self._exchange.joined(values, "up")

    def one(self, task: RoundTask, client: ClientTask, records: int, update: Update, total: ExactSum) -> None:
        """Add what a client sends.

        Raises:
            UpdateRejected: it cannot be added.
        """
        moved = update.values.get(MODEL)
        whole = task.step is None and self._device.type == "cpu" and self._exchange.up_size >= _LARGE and len(update.values) == 1
        if whole and isinstance(moved, Moved):
            with _whole_or_dead():
                total.add_blocks(partial(moved.blocks, BLOCK), self._algorithm.weight(records))
            return
        leaving = self.leaving(update)
        with _whole_or_dead():
            if task.step is None:
                total.add(leaving, self._algorithm.weight(records))
            else:
                self._add_protected(task, client, records, leaving, total)

    def _add_protected(self, task: RoundTask, client: ClientTask, records: int, update: Vector, total: ExactSum) -> None:
        """Add an update of a client that is protected as a whole: clipped, noised and encoded, with weight 1.

        Raises:
            UpdateRejected: it cannot be added.
        """
        step, seed = task.step, self._insecure_seed
        assert step is not None
        share = 1.0 if step.weight_cap is None else min(records / step.weight_cap, 1.0)
        encoded = step.encode(update, share, noise_source(seed, task.round, f"update-{client.index}"))
        if step.integer:
            total.add_integers(encoded)
        else:
            total.add(encoded)

    def many(
        self,
        task: RoundTask,
        clients: Sequence[ClientTask],
        sizes: Sequence[int],
        updates: npt.NDArray[np.float32],
        total: ExactSum,
    ) -> list[UpdateRejected | None]:
        """Add what clients send, float32 ``[clients, up_size]``; for each None, or why it was left out."""
        if task.step is None:
            with _whole_or_dead():
                return total.add_many(updates, [self._algorithm.weight(n) for n in sizes])
        refused: list[UpdateRejected | None] = [None] * len(clients)
        for n, client in enumerate(clients):
            try:
                with _whole_or_dead():
                    self._add_protected(task, client, sizes[n], updates[n], total)
            except UpdateRejected as error:
                refused[n] = error
        return refused


@contextmanager
def _whole_or_dead() -> Iterator[None]:
    """Without memory, or the lock of a sum that others share, half of an update may be in the part: the process ends, so that none of it counts."""
    try:
        yield
    except (MemoryError, OSError):
        traceback.print_exc()
        os._exit(1)
