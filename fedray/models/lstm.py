"""Recurrent networks."""

from __future__ import annotations

from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.models.shapes import check_dropout, refuse_several


class Lstm(nn.Module):
    """LSTM levels over a sequence, and one Linear layer on the last state or on each; tokens go through a table first."""

    def __init__(
        self, features: int, outputs: int, hidden: int, levels: int, dropout: float, tokens: int | None, each_position: bool
    ) -> None:
        super().__init__()
        self.each_position = each_position
        self.embedding = None if tokens is None else nn.Embedding(tokens, features)
        self.lstm = nn.LSTM(features, hidden, num_layers=levels, dropout=dropout, batch_first=True)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, T] tokens, [n, T, features] or [n, 1, T, features] -> [n, outputs], or [n, T, outputs] with ``each_position``."""
        series = self.embedding(x) if self.embedding is not None else x.squeeze(1) if x.dim() == 4 else x
        states = self.lstm(series)[0]
        found: Tensor = self.out(states if self.each_position else states[:, -1])
        return found


def lstm(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: int = 128,
    levels: int = 1,
    dropout: float = 0.0,
    tokens: int | None = None,
    embedding: int = 8,
    each_position: bool = False,
) -> nn.Module:
    """LSTM of ``hidden`` units in each of its levels, read at the end of the sequence or at each position.

    Takes records (T, features), among them images of one channel, row after row; or, with ``tokens`` (how many there are), token
    records (T,), each token as ``embedding`` values. Gives [n, outputs]; with ``each_position`` [n, T, outputs], for training.loss
    next_token. Dropout is between levels.

    Args:
        input_shape: of one record.
        outputs: for a record.
        hidden: units of each level.
        levels: LSTM layers, one upon the other.
        dropout: between levels, in [0, 1).
        tokens: how many different tokens there are; null = records are real-valued.
        embedding: values that stand for a token.
        each_position: give outputs at each position, of what came up to it, and not at the end alone.

    Raises:
        ConfigError: records of another shape, or a size below 1.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3: for
    Shakespeare's next character hidden 256, levels 2, embedding 8.
    """
    sizes = {"hidden": hidden, "levels": levels, "embedding": embedding} | ({} if tokens is None else {"tokens": tokens})
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"model.{name}: {size} is below 1.")
    check_dropout(dropout)
    refuse_several("lstm", input_shape)
    if tokens is not None:
        if len(input_shape) != 1:
            raise ConfigError(f"model.kind: lstm with tokens needs records of shape (T,), but they have {input_shape}.")
        return Lstm(embedding, outputs, hidden, levels, dropout, tokens, each_position)
    if len(input_shape) == 3 and input_shape[0] == 1:
        input_shape = input_shape[1:]
    if len(input_shape) != 2 or min(input_shape) < 1:
        hint = "; for tokens say how many there are (model.tokens)" if len(input_shape) == 1 else ""
        raise ConfigError(f"model.kind: lstm needs records of shape (T, features), but they have {input_shape}{hint}.")
    return Lstm(input_shape[1], outputs, hidden, levels, dropout, None, each_position)


MODELS = {"lstm": lstm}
