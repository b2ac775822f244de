"""The gradient of the mean loss over all of a client's records, at the model as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedray.models.build import evaluating
from fedray.parameters import Layout, Vector
from fedray.training.coupling import apart_in_evaluation
from fedray.training.losses import Loss


def mean_gradient(model: nn.Module, layout: Layout, x: Tensor, y: Tensor, loss: Loss, batch_size: int) -> Vector:
    """The gradient by the tensors of a layout, float32 ``[layout.size]``; zero for buffers, and where there are no records.

    In evaluation mode, so that dropout draws nothing and no running statistic moves; the same records give the same gradient each time.

    Args:
        model: on the device of ``x``.
        layout: of its exchanged tensors.
        x: records [n, ...].
        y: targets [n, ...].
        loss: that is minimised.
        batch_size: records that are computed at once; all of them where the model or the loss does not treat each by itself.
    """
    parameters = dict(model.named_parameters())
    wanted = [(e, parameters[e.name]) for e in layout.entries if e.kind == "shared"]
    total = torch.zeros(layout.size, dtype=torch.float32, device=x.device)
    if not len(x):
        return total.numpy(force=True)
    with evaluating(model), torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no gradient in evaluation mode
        if loss.couples or (len(x) > batch_size and not apart_in_evaluation(model, x[:4])):
            batch_size = len(x)
        with torch.enable_grad():
            for records, targets in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
                value = loss(model(records), targets)
                value = value if loss.couples else value.sum() / len(x)
                found = torch.autograd.grad(value, [p for _, p in wanted], allow_unused=True)
                for (entry, _), gradient in zip(wanted, found, strict=True):
                    if gradient is not None:
                        total[entry.offset : entry.offset + entry.size] += gradient.reshape(-1)
    return total.numpy(force=True)
