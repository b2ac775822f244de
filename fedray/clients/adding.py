"""How what a client sends gets into the part of its actor: as it is, or after the stages of the round."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedray.aggregation.exact import BLOCK, FULL, ExactSum
from fedray.algorithms.algorithm import Algorithm, Update
from fedray.algorithms.turn import Moved
from fedray.attacks.attackers import Attackers
from fedray.clients.messages import ClientTask, Collected, RoundTask
from fedray.config import Config
from fedray.exchange import MODEL, Exchange
from fedray.parameters import Vector
from fedray.privacy.csprng import noise_source
from fedray.secure.protocol import Refused
from fedray.updates.pipeline import of_algorithm, passed_all
from fedray.updates.stage import At, Passed

#: Weights from which an update is never made whole: a copy would leave the cache, and add as much memory to the actor as the model has.
_LARGE = 2**20


class Adding:
    """Adds updates of one actor's clients.

    Args:
        algorithm: gives the clients' weights.
        exchange: its fields.
        device: that the model is on.
        config: the run.
        attackers: clients that send something else than their updates.
    """

    def __init__(self, algorithm: Algorithm, exchange: Exchange, device: torch.device, config: Config, attackers: Attackers) -> None:
        self._algorithm, self._exchange, self._device, self._attackers = algorithm, exchange, device, attackers
        self._weight_cap = config.privacy.weight_cap
        # What stages draw can be repeated where nothing is protected; else noise has a seed in tests only.
        self._seed = config.privacy.insecure_seed if config.privacy.regimes else config.seed
        self._public_seed = config.seed

    def leaving(self, update: Update) -> Vector:
        """The fields of an update as one vector, float32 ``[up_size]``."""
        values = {name: value.vector() if isinstance(value, Moved) else value for name, value in update.values.items()}
        return self._exchange.joined(values, "up")

    def forged(self, task: RoundTask, client: ClientTask, update: Update) -> Update:
        """What a client gives for the update that its algorithm gave: this itself, unless it attacks."""
        if not self._attackers.forges(client.index):
            return update
        sent = self._attackers.sent(task.round, client.index, self.leaving(update))
        return Update(dict(self._exchange.views(sent, "up")), update.state)

    def staged(
        self, task: RoundTask, client: ClientTask, records: int, update: Update, kept: Mapping[str, Vector] | None
    ) -> tuple[npt.NDArray[Any], dict[str, Vector] | None]:
        """What a client sends after the round's stages, and what it keeps: its algorithm's vectors, and each stage's.

        Args:
            task: the round, with stages.
            client: whose turn it is.
            records: number of its training records.
            update: what its algorithm gave.
            kept: what it has kept so far.

        Raises:
            UpdateRejected: a stage cannot use it.
        """
        passed = self._passed(task, client, records, self.leaving(update), kept)
        own = of_algorithm(kept) if update.state is None else update.state
        return passed.values, {**(own or {}), **(passed.state or {})} or None

    def _passed(
        self, task: RoundTask, client: ClientTask, records: int, update: Vector, kept: Mapping[str, Vector] | None = None
    ) -> Passed:
        share = 1.0 if self._weight_cap is None else min(records / self._weight_cap, 1.0)
        source = noise_source(self._seed, task.round, f"update-{client.index}")
        at = At(task.round, client.attempt, client.index, source, share, seed=self._public_seed)
        return passed_all(task.stages, update, at, kept or {})

    def one(self, task: RoundTask, records: int, sent: Update | npt.NDArray[Any], total: Collected, factor: int = FULL) -> None:
        """Add what a client sends, its update or what the stages have made of it, times ``factor / FULL``.

        Raises:
            UpdateRejected: it cannot be added.
        """
        if not isinstance(sent, Update):
            self._add_staged(task, records, sent, total, factor)
            return
        moved = sent.values.get(MODEL)
        whole = self._device.type == "cpu" and self._exchange.up_size >= _LARGE and len(sent.values) == 1
        if whole and isinstance(moved, Moved):
            with whole_or_dead():
                total.add_blocks(partial(moved.blocks, BLOCK), self._algorithm.weight(records), factor)
            return
        leaving = self.leaving(sent)
        with whole_or_dead():
            total.add(leaving, self._algorithm.weight(records), factor)

    def _add_staged(self, task: RoundTask, records: int, values: npt.NDArray[Any], total: Collected, factor: int) -> None:
        with whole_or_dead():
            if task.integer:
                assert isinstance(total, ExactSum)
                total.add_integers(values)
            else:
                total.add(values, 1.0 if task.weighed else self._algorithm.weight(records), factor)

    def many(
        self,
        task: RoundTask,
        clients: Sequence[ClientTask],
        sizes: Sequence[int],
        updates: npt.NDArray[np.float32],
        total: Collected,
    ) -> Sequence[BaseException | None]:
        """Add what clients send, float32 ``[clients, up_size]``; for each None, or why it was left out, which may be anything that a stage
        of the user's own raises.
        """
        for n, client in enumerate(clients):
            if self._attackers.forges(client.index):
                updates[n] = self._attackers.sent(task.round, client.index, updates[n])
        if not task.stages:
            with whole_or_dead():
                return total.add_many(updates, [self._algorithm.weight(n) for n in sizes], [c.factor for c in clients])
        left_out: list[BaseException | None] = [None] * len(clients)
        for n, client in enumerate(clients):
            try:
                self._add_staged(task, sizes[n], self._passed(task, client, sizes[n], updates[n]).values, total, client.factor)
            except BaseException as error:
                left_out[n] = error
        return left_out


@contextmanager
def whole_or_dead() -> Iterator[None]:
    """Without memory, or the lock of a sum that others share, half of an update may be in the part, and without its mask an update in the
    clear: the process ends, so that none of it counts.
    """
    try:
        yield
    except (MemoryError, OSError, Refused):
        traceback.print_exc()
        os._exit(1)
