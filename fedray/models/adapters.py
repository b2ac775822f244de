"""Small parameters that are trained beside a frozen base.

An adapter takes a model and gives the model that is trained: what it adds requires gradients, and nothing else does. So only what it adds is
exchanged, summed, noised, checkpointed and counted as traffic; the base is rebuilt in every process, and its digest is pinned into the run
(:mod:`fedray.frozen`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedray.components import nearest
from fedray.errors import ConfigError


class LoraLinear(nn.Module):
    """A frozen Linear layer plus a trained product of two narrow ones: [n, ..., inputs] -> [n, ..., outputs].

    Args:
        base: stays as it is.
        rank: width between the two.
        scale: factor of their product.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        # Layers of their own, so that every engine knows how to take each record's gradient of them.
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[n, ..., inputs] -> [n, ..., outputs]."""
        return self.base(x) + self.scale * self.up(self.down(x))  # type: ignore[no-any-return]

    def merged(self) -> nn.Linear:
        """One Linear layer of the same outputs, with parameters of its own."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None, dtype=self.base.weight.dtype)
        with torch.no_grad():
            product = self.up.weight.double() @ self.down.weight.double()
            layer.weight.copy_(self.base.weight.double() + self.scale * product)
            if self.base.bias is not None:
                layer.bias.copy_(self.base.bias)
        return layer


def lora(model: nn.Module, rank: int = 4, alpha: float = 8.0, targets: list[str] | None = None) -> nn.Module:
    """Low-rank adapters of Linear layers: the base is frozen, and W x becomes W x + (alpha / rank) B A x with trained A and B.

    A is drawn as a Linear layer's weights are, B begins at zero, so the model begins as the base.

    Args:
        model: the base, of any Linear layers.
        rank: rows of A and columns of B.
        alpha: numerator of the factor alpha / rank.
        targets: names of Linear layers, or their last parts (``query`` for ``blocks.0.query``); null = all of the model.

    Raises:
        ConfigError: no such layer, or a base with a buffer that would be exchanged.

    Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
    """
    if rank < 1 or not alpha > 0:
        raise ConfigError(f"model.adapters: rank {rank} and alpha {alpha:g} must both be above 0.")
    layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if type(module) is nn.Linear}
    chosen = list(layers) if targets is None else [name for name in layers if any(_named(name, target) for target in targets)]
    for target in targets or []:
        if not any(_named(name, target) for name in layers):
            raise ConfigError(
                f"model.adapters.targets: the model has no Linear layer '{target}'; it has {', '.join(layers) or 'none'}.{nearest(target, layers)}"
            )
    if not chosen:
        raise ConfigError("model.adapters: lora needs at least one Linear layer, but there is none to adapt.")
    model.requires_grad_(False)
    adapted: dict[nn.Module, nn.Module] = {}
    for name in chosen:
        if layers[name] not in adapted:
            adapted[layers[name]] = LoraLinear(layers[name], rank, alpha / rank)
    return _with(model, {name: adapted[layers[name]] for name in chosen})


def check_adapted(model: nn.Module, kind: str) -> None:
    """See that nothing but an adapter would be exchanged.

    Raises:
        ConfigError: the base has float buffers, which training changes and the exchange carries.
    """
    saved = model.state_dict()
    buffers = [name for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()]
    if buffers:
        raise ConfigError(
            f"model.adapters: the base '{kind}' has the float buffer {buffers[0]}, which would be exchanged with the adapters; use a base with "
            "GroupNorm or LayerNorm in place of BatchNorm, and register constants with persistent=False."
        )


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model with LoRA's products added to the weights: a model of the factory's own layers and names, in the same mode."""
    model = copy.deepcopy(model)
    layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, LoraLinear)}
    plain = {module: module.merged().train(module.training) for module in layers.values()}
    return _with(model, {name: plain[module] for name, module in layers.items()})


def _with(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """The model with other modules in those places; the empty name is the model's own."""
    for name, module in modules.items():
        if not name:
            return module
        model.set_submodule(name, module)
    return model


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


ADAPTERS = {"lora": lora}
