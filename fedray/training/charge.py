"""One charge, one training: what an algorithm gets of a client's records where each is protected, and what is counted.

An algorithm trains through an engine. What was charged for its turn is one run of one engine, with the loss that the pre-flight test was
made with, so an algorithm gets its records sealed: engines with privacy open them, count every noised step that they take on them,
and refuse other constants than those that were charged. Nothing else can read them, so nothing else of them can leave with the update.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.modules.module as modules
from torch import Tensor, nn

from fedray.errors import ClaimVoid
from fedray.training.engine import LocalJob


class TurnCharge:
    """What was charged for one client's turn, and what has run on its records so far.

    Args:
        job: as the algorithm is given it.
        model: that it trains, as the pre-flight test has seen it.
    """

    def __init__(self, job: LocalJob, model: nn.Module) -> None:
        self._job, self._seen_by = job, _onlookers(model)
        self._steps: dict[tuple[float, float], int] = {}
        self._void: str | None = None

    def seal(self, records: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Records and targets that only an engine with privacy can read; shapes, dtypes and devices can be seen."""
        return Sealed(records, self), Sealed(targets, self)

    def begin(self, job: LocalJob, model: nn.Module) -> None:
        """An engine is about to train a model on the records.

        Raises:
            ClaimVoid: not as was charged.
        """
        for name in ("loss", "noise", "dp", "persons", "augment"):
            if getattr(job, name) is not getattr(self._job, name):
                self.refuse(
                    f"it gave the engine another '{name}' than the one that was charged for; what changes local training belongs into 'adjust'"
                )

        if _onlookers(model) != self._seen_by:
            self.refuse(
                "it gave the engine a model with other layers or hooks than the one that was tried, which may see records before they are "
                "clipped and noised; what changes local training belongs into 'adjust'"
            )

    def step(self, noise_multiplier: float, sampling_rate: float) -> None:
        """An engine has drawn the noise of a step."""
        self._steps[noise_multiplier, sampling_rate] = self._steps.get((noise_multiplier, sampling_rate), 0) + 1

    def refuse(self, why: str) -> None:
        """The algorithm did what no charge covers; it stays so if the algorithm goes on.

        Raises:
            ClaimVoid: always.
        """
        self._void = f"algorithm.kind: {why}. Its updates must not be used; train through the engine, once in a turn."
        raise ClaimVoid(self._void)

    def history(self) -> list[tuple[float, float, int]]:
        """All noised steps of the turn, [(noise multiplier, sampling rate, steps)].

        Raises:
            ClaimVoid: the algorithm did what no charge covers.
        """
        if self._void is not None:
            raise ClaimVoid(self._void)
        return [(z, q, steps) for (z, q), steps in self._steps.items()]


#: Tables of what is called at a module's forward or backward pass: of one module, and of all.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_ALL = [table for name, table in vars(modules).items() if name.startswith("_global_") and isinstance(table, dict)]


def _onlookers(model: nn.Module) -> list[Any]:
    """All that takes part in a model's passes: layers by name and class, their hooks, and torch's modes."""
    found: list[Any] = [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(), *(list(table) for table in _OF_ALL)]
    for name, module in model.named_modules():
        own = vars(module)
        hooks = [id(hook) for table in _HOOKS for hook in own[table].values()]
        found.append((name, type(module), hooks, own.get("forward")))
    return found


class Sealed(Tensor):
    """A tensor of a client's records that has a shape, a dtype and a device, and no values."""

    charge: TurnCharge
    _records: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, charge: TurnCharge) -> Sealed:
        """A tensor without memory, like ``values``."""
        made: Sealed = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=values.device)
        made._records, made.charge = values, charge
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Sealed({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Whatever would read the values.

        Raises:
            ClaimVoid: always.
        """
        found = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(value, Sealed)]
        found[0].charge.refuse(f"it computes with a client's records by itself ({func}), outside of the engine")


def opened(records: Tensor) -> Tensor:
    """The records themselves; for engines that count what they do with them."""
    return records._records if isinstance(records, Sealed) else records


def charge_of(*records: Tensor) -> TurnCharge | None:
    """What was charged for training on these records; None where the caller counts."""
    return next((r.charge for r in records if isinstance(r, Sealed)), None)
