"""The local engine that trains many small clients at once: their steps are batched matrix products.

A client of twenty records costs a loop over clients more in calls than in arithmetic. Here the weights of K
clients are stacked, [K, outputs, inputs], and one call moves all of them. Clients of different sizes stay exact: a
short batch is filled up with records of weight 0, and a client that has taken its steps leaves.

What comes out for a client is the same to the last bit whoever it was trained beside, so that results do not depend on how
clients were handed to actors (:mod:`fedray.training.batched` says how). One thread computes, for several would share out the products of
a batch, but the inside of a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedray.config import Training
from fedray.errors import ConfigError
from fedray.parameters import Layout, Vector, get_vector, set_vector
from fedray.training import batched
from fedray.training.engine import LocalJob, LocalResult, check_stop
from fedray.training.fast.sequential import observed
from fedray.training.losses import cross_entropy, of_own_counts
from fedray.training.plain import passes, steps_of

#: Bytes of stacked weights that are trained at once: what a core's cache holds, or what fills a GPU.
_STACK, _GPU_STACK = 2**21, 2**28
#: Clients at once from which it pays.
_FEWEST = 4

#: Layers that treat every value by itself, by exact type: a subclass may compute something else. GELU is none: the library that
#: computes it rounds a value by the place where it lies.
_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.Identity)


@dataclass(frozen=True)
class Crowd:
    """Clients that are trained together: rows ``starts[k]`` to ``stops[k]`` of common tensors, and each one's own draws.

    Attributes:
        x: records [n, ...] of all of them (and perhaps others), on the model's device or, where they are many, on the CPU.
        y: targets [n].
        starts, stops: each client's rows.
        draws: gives the keyed generator for a client's batches, which is used before the next is asked for.
    """

    x: Tensor
    y: Tensor
    starts: Sequence[int]
    stops: Sequence[int]
    draws: Callable[[int], np.random.Generator]


def lockstep(model: nn.Module, x: Tensor, y: Tensor, job: LocalJob) -> LocalResult:
    """SGD without privacy, many small clients at a time, each as if it were alone.

    For chains of Linear layers and elementwise activations, and SGD with or without momentum and weight decay. Gives what
    ``plain`` gives, up to rounding.

    Args:
        model: trained in place.
        x: records [n, ...].
        y: targets [n].
        job: what to do; ``dp``, ``noise`` and ``adjust`` are not used.

    Raises:
        ConfigError: the model or the training section is not for it.
        Stopped: ``job.should_stop`` said so between two steps.
    """
    layout = Layout.of(model)
    trained, results = train_crowd(model, layout, get_vector(model, layout), Crowd(x, y, [0], [len(x)], lambda client: job.draws), job)
    set_vector(model, layout, trained[0])
    return results[0]


ENGINES = {"lockstep": lockstep}


def unsupported(model: nn.Module, training: Training) -> str | None:
    """Why :func:`lockstep` cannot train the model so, as a clause; None where it can."""
    if training.optimizer != "sgd":
        return f"it knows SGD only, not {training.optimizer}"
    batch = training.batch_size
    if batch is None:
        return "it takes training.batch_size, not a sampling_rate"
    if batch > training.physical_batch:
        return "training.batch_size is above training.physical_batch"
    if training.precision != "fp32":
        return f"training.precision is {training.precision}"
    if of_own_counts(training.loss):
        return "training.loss weights classes by each client's own records"
    if training.augment is not None:
        return "training.augment changes the records of each step"
    seen, owned = 0, set[int]()
    for n, (_, layer) in enumerate(_named(model)):
        if type(layer) is nn.Linear:
            seen += 1
            if any(id(p) in owned for p in layer.parameters()):
                return "layers share a parameter"
            owned |= {id(p) for p in layer.parameters()}
        elif type(layer) is nn.Flatten:
            if n or layer.start_dim != 1 or layer.end_dim != -1:
                return "it flattens at another place than the beginning"
        elif type(layer) not in _ELEMENTWISE:
            return f"{type(layer).__name__} is no layer that it knows"
    own = next((module for module in model.modules() if observed(module)), None)
    if own is not None:
        return f"{type(own).__name__} has a forward pass of its own, or hooks"
    return None if seen else "it has no Linear layer"


def gains(model: nn.Module) -> bool:
    """Whether it is faster than ``plain``: where so many clients' weights fit the cache that calls are what ``plain`` waits for."""
    return group_size(sum(p.numel() for p in model.parameters()), next(model.parameters()).device) >= _FEWEST


def group_size(size: int, device: torch.device) -> int:
    """How many clients of a model with ``size`` weights to train at once."""
    stack, most = (_STACK, 128) if device.type == "cpu" else (_GPU_STACK, 4096)
    return max(1, min(most, stack // (4 * max(1, size))))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def train_crowd(
    model: nn.Module, layout: Layout, weights: Vector, crowd: Crowd, job: LocalJob
) -> tuple[npt.NDArray[np.float32], list[LocalResult]]:
    """Train clients from the same weights.

    Args:
        model: says what is computed; left as it is.
        layout: of the model.
        weights: that they start from, [size].
        crowd: the clients.
        job: what each of them does; its ``draws`` are not used.

    Returns:
        Their weights, float32 [clients, size], and what each did.

    Raises:
        ConfigError: the model or the training section is not for this engine.
        Stopped: ``job.should_stop`` said so between two steps.
    """
    training = job.training
    reason = unsupported(model, training)
    if reason is not None:
        raise ConfigError(f"training.engine: lockstep cannot train this ({reason}); use training.engine=plain.")
    trained = np.empty((len(crowd.starts), layout.size), dtype=np.float32)
    results: list[LocalResult] = [LocalResult(0, 0, None)] * len(crowd.starts)
    for clients, width in _alike(crowd, training):
        plan = _BatchPlan.of(crowd, clients, width, training)
        stack = _Stack(model, layout, weights, len(clients))
        loss = _run(stack, plan, crowd, job)
        stack.write(trained, plan.order)
        for client, steps, examples, total in zip(plan.order, plan.steps, plan.examples, loss, strict=True):
            results[client] = LocalResult(int(steps), int(examples), float(total) / int(examples) if examples else None)
    return trained, results


def _alike(crowd: Crowd, training: Training) -> list[tuple[list[int], int]]:
    """Clients with batches of one width, and that width. It depends on the client alone, for the sake of the last bit."""
    n = np.subtract(crowd.stops, crowd.starts)
    widths = np.minimum(training.batch_size or 1, 2 ** np.ceil(np.log2(np.maximum(n, 1))).astype(np.int64))
    return [(np.flatnonzero(widths == width).tolist(), int(width)) for width in np.unique(widths)]


def _run(stack: _Stack, plan: _BatchPlan, crowd: Crowd, job: LocalJob) -> npt.NDArray[np.float64]:
    """All steps; the sum of each place's losses."""
    x, y = crowd.x.reshape(len(crowd.x), -1), crowd.y
    loss = np.zeros(len(plan.order))
    for step, active in enumerate(plan.active):
        check_stop(job)
        rows = torch.from_numpy(plan.rows[:active, step]).to(x.device)
        weight = torch.from_numpy(plan.weights[:active, step]).to(stack.device)
        records, targets = _gathered(x, rows, stack.inputs), y.index_select(0, rows.reshape(-1))
        losses = stack.step(records.to(stack.device), targets.to(stack.device), weight, job)
        loss[:active] += (losses * (weight > 0)).sum(1, dtype=torch.float64).cpu().numpy()
    return loss


@dataclass(frozen=True)
class _BatchPlan:
    """Who uses which rows in which step.

    Attributes:
        order: place in the stack to client; who takes most steps comes first. All have batches of one width.
        active: clients that take each step: a prefix of the stack.
        rows: int64 [clients, steps, batch].
        weights: of a record's gradient, float32, of the same shape; 0 where a short batch is filled up.
        steps, examples: of each place.
    """

    order: npt.NDArray[np.int64]
    active: list[int]
    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]
    examples: npt.NDArray[np.int64]

    @classmethod
    def of(cls, crowd: Crowd, clients: Sequence[int], width: int, training: Training) -> _BatchPlan:
        batch = training.batch_size or width
        begin = np.array([crowd.starts[k] for k in clients], dtype=np.int64)
        n = np.array([crowd.stops[k] for k in clients], dtype=np.int64) - begin
        counts = np.array([steps_of(int(size), training) for size in n], dtype=np.int64)
        first = np.argsort(-counts, kind="stable")
        order, n, begin, counts = np.array(clients)[first], n[first], begin[first], counts[first]
        drawn = [list(passes(size, training, crowd.draws(k))) for k, size in zip(order.tolist(), n.tolist(), strict=True)]
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *(indices for orders in drawn for indices in orders)])
        offset = np.cumsum([0, *(sum(map(len, orders)) for orders in drawn)])[:-1]

        step = np.arange(int(counts.max(initial=0)))
        a_pass = np.maximum(-(-n // batch), 1)[:, None]  # steps of one
        at = step % a_pass * batch  # a batch's place in its pass
        sizes = np.where(step < counts[:, None], np.minimum(batch, n[:, None] - at), 0)
        slot = np.arange(width)
        here = np.where(slot < sizes[:, :, None], at[:, :, None] + slot, at[:, :, None])  # a short batch is filled up with its first
        rows = flat.take((offset[:, None] + step // a_pass * n[:, None])[:, :, None] + here, mode="clip") + begin[:, None, None]
        weights = (slot < sizes[:, :, None]) * (1.0 / np.maximum(sizes, 1)).astype(np.float32)[:, :, None]
        active = (counts > step[:, None]).sum(1).tolist()
        return cls(order, active, rows, weights, counts, sizes.sum(1))


class _Stack:
    """The weights of K clients, and how they move."""

    def __init__(self, model: nn.Module, layout: Layout, weights: Vector, clients: int) -> None:
        self.device = next(model.parameters()).device
        offsets = {entry.name: entry.offset for entry in layout.entries}
        self._links: list[_Link] = []
        last: list[nn.Module] = []
        for name, layer in _named(model):
            if type(layer) is nn.Linear:
                self._links.append(_Link(layer, name, offsets, weights, clients, self.device))
                last = self._links[-1].after
            elif type(layer) is not nn.Flatten:
                last.append(layer)
        self.inputs = self._links[0].inputs
        self._lowest = next((n for n, link in enumerate(self._links) if link.moves or link.moves_bias), 0)  # below it no gradient is needed

    def step(self, x: Tensor, targets: Tensor, weight: Tensor, job: LocalJob) -> Tensor:
        """One step of the first ``len(x)`` clients; the losses of their records, [clients, batch].

        Args:
            x: records [clients, batch, inputs], filled up.
            targets: [clients * batch].
            weight: of each record's gradient, [clients, batch].
            job: loss, learning rate and training section.
        """
        active = len(x)
        entered: list[Tensor] = []  # what goes into each Linear layer, without a graph
        left: list[Tensor] = []  # what comes out of it, where graphs begin
        passed: list[Tensor] = []  # what the activations after it make of that
        h = x
        for link in self._links:
            z = link.forward(h, active).requires_grad_()
            entered.append(h)
            left.append(z)
            passed.append(link.activate(z))
            h = batched.filled(passed[-1].detach())
        losses, gradient = self._links[-1].slope(left[-1], passed[-1], targets, weight, job)
        largest, later = job.training.max_grad_norm, list[Tensor]()
        for n in reversed(range(self._lowest, len(self._links))):
            link = self._links[n]
            below = link.backward(gradient, active) if n > self._lowest else None
            if largest is None:
                link.move(entered[n], gradient, active, job)
            else:  # not before the norm over all layers is known
                later.insert(0, gradient)
            if below is not None:
                before = passed[n - 1]
                (gradient,) = torch.autograd.grad([(before * below[..., : before.shape[-1]]).sum()], [left[n - 1]])
        if largest is not None:
            moved = list(zip(self._links[self._lowest :], entered[self._lowest :], later, strict=True))
            parts = (link.squares(h, slope) for link, h, slope in moved)
            factor = batched.clip_factor([part for of_link in parts for part in of_link], largest)
            for link, h, slope in moved:
                link.move(h, slope * factor, active, job)
        return losses

    def write(self, out: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> None:
        """The weights as they are, into rows ``order`` of ``out`` [clients, size]."""
        as_they_stand = np.array_equal(order, np.arange(len(out)))  # a slice is copied twice as fast as rows that are named
        for link in self._links:
            link.write(out, slice(None) if as_they_stand else order)


class _Link:
    """A Linear layer of K clients, filled up to whole cache lines, and the activations after it.

    ``weight`` is [K, outputs, inputs] and ``bias`` [K, 1, outputs]; what fills them up stays zero, and a frozen one stays as it is.
    """

    def __init__(self, layer: nn.Linear, name: str, offsets: dict[str, int], weights: Vector, clients: int, device: torch.device) -> None:
        self.after, self.clients = list[nn.Module](), clients
        self._p, self._d = layer.out_features, layer.in_features
        self.outputs, self.inputs = batched.outputs(self._p), batched.whole(self._d)
        self.moves, self.moves_bias = layer.weight.requires_grad, layer.bias is not None and layer.bias.requires_grad
        self._at, self._bias_at = offsets.get(f"{name}weight"), offsets.get(f"{name}bias")
        start, bias = torch.zeros((self.outputs, self.inputs)), torch.zeros(self.outputs)
        for into, own, at in ((start[: self._p, : self._d], layer.weight, self._at), (bias[: self._p], layer.bias, self._bias_at)):
            if own is not None:
                into.copy_(own.detach() if at is None else torch.from_numpy(weights[at : at + own.numel()].copy()).view(own.shape))
        self.weight = start.to(device).expand(clients, -1, -1).contiguous()
        self.bias = bias.to(device).expand(clients, 1, -1).contiguous()
        self._velocity: tuple[Tensor, Tensor] | None = None

    def forward(self, h: Tensor, active: int) -> Tensor:
        return batched.baddbmm(self.bias[:active], h, self.weight[:active].transpose(1, 2))

    def activate(self, z: Tensor) -> Tensor:
        """[clients, batch, outputs] -> the same, without what fills it up."""
        h = z[..., : self._p]
        for layer in self.after:
            h = layer(h)
        return h

    def slope(self, z: Tensor, out: Tensor, targets: Tensor, weight: Tensor, job: LocalJob) -> tuple[Tensor, Tensor]:
        """The losses [clients, batch] of what this last layer gives, and the gradient of their weighted sum by ``z``."""
        if getattr(job.loss, "function", job.loss) is cross_entropy and not self.after and int(targets.min()) >= 0:
            return batched.cross_entropy_slope(z.detach(), self._p, targets, weight)
        losses = job.loss(*batched.with_more_records(out.flatten(0, 1), targets))[: weight.numel()].view(weight.shape)
        # A sum and not autograd's own weights: for those it imports a symbolic algebra, a second and 50 MiB.
        (gradient,) = torch.autograd.grad([(losses * weight).sum()], [z])
        return losses.detach(), gradient

    def backward(self, gradient: Tensor, active: int) -> Tensor:
        return batched.bmm(gradient, self.weight[:active])

    def squares(self, h: Tensor, gradient: Tensor) -> list[Tensor]:
        """The squared norms of each client's gradients of what moves, each [clients, 1, 1]."""
        found = [batched.bmm(gradient.transpose(1, 2), h)] if self.moves else []
        return [batched.square(values) for values in (*found, *([gradient.sum(1, keepdim=True)] if self.moves_bias else []))]

    def move(self, h: Tensor, gradient: Tensor, active: int, job: LocalJob) -> None:
        """One step of SGD, as torch.optim.SGD takes it."""
        training, turned, weight, bias = job.training, gradient.transpose(1, 2), self.weight[:active], self.bias[:active]
        if not training.momentum and not training.weight_decay:
            if self.moves:
                batched.add_bmm(weight, turned, h, -job.lr)
            if self.moves_bias:
                bias.sub_(gradient.sum(1, keepdim=True), alpha=job.lr)
            return
        if self._velocity is None:
            self._velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        found = [(weight, batched.bmm(turned, h), self._velocity[0][:active])] if self.moves else []
        if self.moves_bias:
            found.append((bias, gradient.sum(1, keepdim=True), self._velocity[1][:active]))
        for values, step, velocity in found:
            step.add_(values, alpha=training.weight_decay)
            if training.momentum:
                velocity.mul_(training.momentum).add_(step)
                step = step.add_(velocity, alpha=training.momentum) if training.nesterov else velocity
            values.sub_(step, alpha=job.lr)

    def write(self, out: npt.NDArray[np.float32], rows: slice | npt.NDArray[np.int64]) -> None:
        """The weights, into rows of vectors."""
        if self._at is not None:
            out[rows, self._at : self._at + self._p * self._d] = (
                self.weight[:, : self._p, : self._d].cpu().numpy().reshape(self.clients, -1)
            )
        if self._bias_at is not None:
            out[rows, self._bias_at : self._bias_at + self._p] = self.bias[:, 0, : self._p].cpu().numpy()


def _gathered(x: Tensor, rows: Tensor, inputs: int) -> Tensor:
    """Rows of x as [clients, batch, inputs], filled up."""
    found = x.index_select(0, rows.reshape(-1))
    if found.shape[1] != inputs:
        found = nn.functional.pad(found, (0, inputs - found.shape[1]))
    return found.view(*rows.shape, inputs)


def _named(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of nested Sequentials in order, with the prefix of their parameters' names."""
    if type(model) is not nn.Sequential:
        return [(prefix, model)]
    return [found for name, child in model.named_children() for found in _named(child, f"{prefix}{name}.")]
