"""One noiseless step of a private engine on synthetic records, and what it should have given."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ClaimVoid
from fedray.privacy.persons import Person
from fedray.rng import generator
from fedray.training.compiled import as_written
from fedray.training.dploop import clip_factors, record_losses
from fedray.training.engine import Clipping, DpStep, Engine, LocalJob, LossFn, seeded_torch
from fedray.training.kept import OWN, kept_refusal
from fedray.training.recorddraws import Pattern, RecordDraws, Shape


class _Silence:
    """Every record's coin falls heads, and the noise is zero. For synthetic records only."""

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


@dataclass
class StepProbe:
    """Runs a model, a loss and an engine on some of the synthetic records; every step starts from the same weights.

    Attributes:
        engine: a private one.
        model: on the device of the records.
        loss: per-record loss.
        training: one step in which every record is drawn, in one physical batch.
        x, y: the synthetic records.
        clipping: flat or per layer.
        patterns: how the shapes of what the model draws hold records; None where it draws nothing.
        persons: whose each record is, int64 ``[n]``, one's records side by side, where a person's gradients are clipped as one; else None.
        first: what the draws follow from, besides the seed of a step; another in every process, so that a run's draws share nothing
            with those of another.
    """

    engine: Engine
    model: nn.Module
    loss: LossFn
    training: Training
    x: Tensor
    y: Tensor
    clipping: Clipping
    patterns: frozenset[Pattern] | None = frozenset()
    persons: npt.NDArray[np.int64] | None = None
    first: int = field(default_factory=lambda: secrets.randbits(31))
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Keep the weights."""
        self.state = {k: v.clone() for k, v in self.model.state_dict().items()}

    @cached_property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those that are trained, by name."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def sum(self, keep: Tensor, clip: float, seed: int = 0) -> Tensor:
        """The clipped sum over some records, flat float64; with the same seed each record has the same draws in every sum."""
        return self._step(keep, clip, seed)[0]

    def draws(self, n: int, seed: int = 0) -> tuple[list[Shape], list[int]]:
        """The shapes of what a step on the first ``n`` records draws, and what the draws follow from."""
        return self._step(torch.arange(n, device=self.x.device), 1.0, seed)[1:]

    def _step(self, keep: Tensor, clip: float, seed: int) -> tuple[Tensor, list[Shape], list[int]]:
        taken: list[Tensor] = []

        def take(model: nn.Module) -> None:
            taken.append(torch.cat([p.grad.detach().flatten().double() for p in model.parameters() if p.grad is not None]))

        job = LocalJob(
            training=self.training,
            lr=1.0,
            loss=self.loss,
            draws=generator(0, "preflight"),
            noise=_Silence(),
            dp=DpStep(0.0, clip, self.clipping, None if self.persons is None else Person("clipped")),
            adjust=take,
            persons=None if self.persons is None else self.persons[keep.cpu().numpy()],
        )
        self._from_the_start()
        own = None if self.patterns is None else RecordDraws(keep.tolist(), self.patterns)
        with seeded_torch(self.first + seed, self.x.device), own or nullcontext():
            result = self.engine(self.model, self.x[keep], self.y[keep], job)
        if len(taken) != 1 or result.history != [(0.0, 1.0, 1)]:
            raise ClaimVoid(
                f"training.engine: took {len(taken)} steps and accounted for {result.history} where one noised step was asked for."
            )
        return taken[0], ([] if own is None else own.shapes), ([] if own is None else own.keys)

    def gradient(self, keep: Tensor) -> list[Tensor]:
        """The gradient of the sum of some records' losses by each trained parameter, as autograd has it."""
        self._from_the_start()
        self.model.train()
        own = None if self.patterns is None else RecordDraws(keep.tolist(), self.patterns)
        parameters = [p for _, p in self.parameters]
        with as_written(), seeded_torch(self.first, self.x.device), own or nullcontext():
            total = record_losses(self.loss, self.model(self.x[keep]), self.y[keep]).sum()
            found = torch.autograd.grad([total], parameters, allow_unused=True) if total.requires_grad else [None] * len(parameters)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def without(self, keep: Tensor, i: int) -> Tensor:
        """Some records without record ``i``, or without all of its person."""
        if self.persons is None:
            return keep[keep != i]
        return keep[torch.from_numpy(self.persons[keep.cpu().numpy()] != self.persons[i]).to(keep.device)]

    def units(self, group: list[int], alone: Mapping[int, list[Tensor]]) -> list[list[Tensor]]:
        """The gradients of what is clipped as one among some records: each record's, or each person's mean, in which a record without a
        finite gradient counts as zero.

        Args:
            group: the records.
            alone: each record's gradient by each trained parameter.
        """
        if self.persons is None:
            return [alone[i] for i in group]
        whose = self.persons[group]
        rows = [[i for i, person in zip(group, whose, strict=True) if person == one] for one in dict.fromkeys(whose.tolist())]
        finite = {i: all(bool(g.isfinite().all()) for g in alone[i]) for i in group}
        return [
            [torch.stack([g if finite[i] else torch.zeros_like(g) for i, g in zip(own, each, strict=True)]).mean(0) for each in parts]
            for own in rows
            for parts in [zip(*(alone[i] for i in own), strict=True)]
        ]

    def _from_the_start(self) -> None:
        """The weights as they were; a call may have left others."""
        for name in sorted(self.model.state_dict().keys() ^ self.state.keys()):
            raise kept_refusal(OWN + name)
        self.model.load_state_dict(self.state)

    def clipped(self, gradient: list[Tensor], clip: float) -> Tensor:
        """What a record of this gradient should add to the clipped sum, flat float64."""
        factors, bad = clip_factors([g.double().norm()[None] for g in gradient], len(gradient), DpStep(0.0, clip, self.clipping))
        if bad.any():
            return torch.zeros(sum(g.numel() for g in gradient), dtype=torch.float64, device=self.x.device)
        return torch.cat([(g.double() * f).flatten() for g, f in zip(gradient, factors, strict=True)])
