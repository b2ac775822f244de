"""LSTMs written out: products of two Linear layers over whole sequences, and between them a recurrence without parameters.

torch's own LSTM does not say what its gates' gradients were, of which a record's gradient is made. All weights enter the gates
as W x_t + U h_(t-1): so the gradient of the gates before their activations is that of the outputs of two Linear layers, one that saw the
inputs and one that saw the states.

Source: Hochreiter and Schmidhuber 1997, Long Short-Term Memory, with the forget gate of Gers, Schmidhuber and Cummins 2000
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from fedray.errors import ConfigError

#: Says that a layer saw an input [n, T, d], and which tensor's gradient is that of its output.
Note = Callable[[nn.Linear, Tensor, Tensor], None]


def unsupported(lstm: nn.LSTM) -> str | None:
    """Why :class:`Unrolled` cannot stand in for it, as a clause; None where it can."""
    return "projects its states (proj_size)" if lstm.proj_size else None


class Unrolled:
    """Does what an LSTM does, with its parameters.

    Args:
        lstm: whose place :meth:`forward` can take.
        note: called for the Linear layers that see states; those that see inputs are called as layers are.

    Attributes:
        layers: Linear layers that hold the LSTM's parameters; each is used once for a batch.
    """

    def __init__(self, lstm: nn.LSTM, note: Note) -> None:
        self._lstm, self._note = lstm, note
        ends = [f"l{level}{way}" for level in range(lstm.num_layers) for way in _ways(lstm)]
        self._pairs = [(_linear(lstm, f"ih_{end}"), _linear(lstm, f"hh_{end}")) for end in ends]
        self.layers = [layer for pair in self._pairs for layer in pair]

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As :class:`torch.nn.LSTM`'s.

        Raises:
            ConfigError: a packed sequence, or one without a batch.
        """
        lstm = self._lstm
        if isinstance(input, PackedSequence) or input.dim() != 3:
            kind = "a packed sequence" if isinstance(input, PackedSequence) else f"{tuple(input.shape)}"
            raise ConfigError(f"training.engine: book needs records [n, T, features] before an LSTM, not {kind}; pad to one length.")
        x = input if lstm.batch_first else input.transpose(0, 1)
        ways, hidden, cells = len(_ways(lstm)), [], []
        for level in range(lstm.num_layers):
            if level and lstm.dropout:
                x = functional.dropout(x, lstm.dropout, lstm.training)
            outputs = []
            for way in range(ways):
                place = level * ways + way
                start = (None, None) if hx is None else (hx[0][place], hx[1][place])
                h, c, last = self._run(self._pairs[place], x.flip(1) if way else x, *start)
                outputs.append(h.flip(1) if way else h)
                hidden.append(last)
                cells.append(c)
            x = torch.cat(outputs, 2) if ways == 2 else outputs[0]
        return x if lstm.batch_first else x.transpose(0, 1), (torch.stack(hidden), torch.stack(cells))

    def _run(self, pair: tuple[nn.Linear, nn.Linear], x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """One direction of one level: states [n, T, H], and the last cell and state [n, H]."""
        inputs, states = pair
        gates = inputs(x)
        if torch.is_grad_enabled() and not gates.requires_grad:  # only the states' weights are trained
            gates.requires_grad_()
        entered = gates if states.bias is None else gates + states.bias.detach()
        empty = x.new_zeros((len(x), states.in_features))
        h, c = empty if h is None else h, empty if c is None else c
        hidden, cell = _Recurrence.apply(entered.transpose(0, 1), states.weight.detach(), h, c)  # type: ignore[no-untyped-call]
        if any(p.requires_grad for p in states.parameters()):
            self._note(states, torch.cat([h.detach()[None], hidden.detach()[:-1]]).transpose(0, 1), gates)
        return hidden.transpose(0, 1), cell, hidden[-1]


def _ways(lstm: nn.LSTM) -> tuple[str, ...]:
    return ("", "_reverse") if lstm.bidirectional else ("",)


def _linear(lstm: nn.LSTM, name: str) -> nn.Linear:
    """A Linear layer that holds the LSTM's parameters of this name."""
    weight = lstm.get_parameter(f"weight_{name}")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=lstm.bias, device="meta")
    layer.weight = weight
    if lstm.bias:
        layer.bias = lstm.get_parameter(f"bias_{name}")
    return layer


class _Recurrence(torch.autograd.Function):
    """Gates [T, n, 4 H] as the inputs made them, weight [4 H, H], and the first state and cell [n, H] -> states [T, n, H] and the last cell.

    Gates are in torch's order: input, forget, cell, output. The weight is a constant: its gradient is nobody's who asks here.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        steps, n, _ = gates.shape
        size = h.shape[1]
        active = torch.empty_like(gates, memory_format=torch.contiguous_format)  # the gates after their activations
        cells, hidden = gates.new_empty((steps + 1, n, size)), gates.new_empty((steps, n, size))
        cells[0] = c
        for t in range(steps):
            a = torch.addmm(gates[t], h, weight.t(), out=active[t])
            a[:, : 2 * size].sigmoid_()
            a[:, 2 * size : 3 * size].tanh_()
            a[:, 3 * size :].sigmoid_()
            i, f, g, o = a.chunk(4, 1)
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            h = torch.mul(o, cells[t + 1].tanh(), out=hidden[t])
        ctx.save_for_backward(active, cells, weight)
        return hidden, cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        active, cells, weight = ctx.saved_tensors
        of_hidden, of_cell = gradients
        steps, _, size = of_hidden.shape
        of_gates = torch.empty_like(active)
        carried, above = None, of_cell.clone()  # of the state and the cell, from the step after
        for t in reversed(range(steps)):
            i, f, g, o = active[t].chunk(4, 1)
            of_h = of_hidden[t] if carried is None else of_hidden[t] + carried
            squashed = cells[t + 1].tanh()
            above = above + of_h * o * (1 - squashed * squashed)
            of_i, of_f, of_g, of_o = of_gates[t].chunk(4, 1)
            torch.mul(above * g, i * (1 - i), out=of_i)
            torch.mul(above * cells[t], f * (1 - f), out=of_f)
            torch.mul(above * i, 1 - g * g, out=of_g)
            torch.mul(of_h * squashed, o * (1 - o), out=of_o)
            carried = of_gates[t] @ weight
            above = above * f
        assert carried is not None
        return of_gates, None, carried, above
