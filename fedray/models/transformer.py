"""A causal transformer for next-token prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedray.errors import ConfigError
from fedray.models.shapes import check_dropout

_SPREAD = 0.02  # standard deviation of initial weights, after Radford et al. 2019


class CausalAttention(nn.Module):
    """Self-attention of each position to itself and those before it: [n, T, width] -> [n, T, width].

    The four projections are layers of their own, so that adapters can name them and per-record engines know them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[n, T, width] -> [n, T, width]."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and a GELU network, each behind a LayerNorm and beside a shortcut: [n, T, width] -> [n, T, width]."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2, self.up, self.gelu, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, T, width] -> [n, T, width]."""
        x = x + self.dropout1(self.attention(self.norm1(x)))
        return x + self.dropout2(self.down(self.gelu(self.up(self.norm2(x)))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Logits of the next token at each position: [n, T] tokens -> [n, T, outputs]."""

    def __init__(self, length: int, tokens: int, outputs: int, width: int, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=_SPREAD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[n, T] -> [n, T, outputs]."""
        # Each record has positions of its own, so that the embedding of positions has a gradient for each record.
        positions = torch.arange(x.shape[1], device=x.device).expand_as(x)
        found = self.dropout(self.token(x) + self.position(positions))
        return self.head(self.norm(self.blocks(found)))  # type: ignore[no-any-return]


def transformer(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    tokens: int | None = None,
) -> nn.Module:
    """Causal transformer with LayerNorm before each part: the logits of the next token at every position.

    Takes token records (T,) of int64; gives [n, T, outputs], for training.loss next_token. Its Linear layers, which adapters can name, are
    query, key, value and out of each block's attention, up and down of its network, and head.

    Args:
        input_shape: of one record, (T,).
        outputs: tokens that may come next.
        width: values that stand for a position.
        layers: blocks, one upon the other.
        heads: of attention; divides width.
        hidden: units between the two layers of each block's network; null = 4 times width.
        dropout: of the embedding and of what each part adds, in [0, 1).
        tokens: how many different tokens records hold; null = as many as outputs.

    Raises:
        ConfigError: records of another shape, a size below 1, or heads that do not divide width.

    Source: Vaswani et al. 2017, Attention Is All You Need; Radford et al. 2019, Language Models are Unsupervised Multitask Learners
        (LayerNorm first, GELU, initial weights).
    """
    if len(input_shape) != 1:
        raise ConfigError(f"model.kind: transformer needs token records of shape (T,), but they have {input_shape}.")
    sizes = {"width": width, "layers": layers, "heads": heads, "hidden": 4 * width if hidden is None else hidden}
    sizes["tokens"] = outputs if tokens is None else tokens
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"model.{name}: {size} is below 1.")
    if width % heads:
        raise ConfigError(f"model.heads: {heads} heads do not divide a width of {width}; make width a multiple of heads.")
    check_dropout(dropout)
    return Transformer(input_shape[0], sizes["tokens"], outputs, width, layers, heads, sizes["hidden"], dropout)


MODELS = {"transformer": transformer}
