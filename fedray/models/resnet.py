"""Residual networks with GroupNorm, which couples no records and keeps no running statistics."""

from __future__ import annotations

from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.models.shapes import channel_axis, image_shape

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut: [n, c, h, w] -> [n, channels, h / stride, w / stride]."""

    def __init__(self, incoming: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(incoming, channels, 1, stride=stride, bias=False), nn.GroupNorm(groups, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, channels, h / stride, w / stride]."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        # Not in place: per-record gradients need the activations as they were.
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no first pooling, for small images: [n, channels, h, w] -> [n, outputs]."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, groups: int) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet18_gn", input_shape, smallest=16)
        incoming = _STAGES[0][0]
        self.stem = nn.Sequential(
            *channel_axis(input_shape).values(),
            nn.Conv2d(channels, incoming, 3, padding=1, bias=False),
            nn.GroupNorm(groups, incoming),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        for width, stride in _STAGES:
            blocks += [BasicBlock(incoming, width, stride, groups), BasicBlock(width, width, 1, groups)]
            incoming = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(incoming, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> [n, outputs]."""
        return self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))  # type: ignore[no-any-return]


def resnet18_gn(input_shape: tuple[int, ...], outputs: int, groups: int = 32) -> nn.Module:
    """ResNet-18 for small images with GroupNorm instead of BatchNorm; 11,173,962 parameters on CIFAR-10.

    Takes [n, channels, height, width] (or [n, height, width]); gives [n, outputs].

    Args:
        input_shape: of one record.
        outputs: for a record.
        groups: of channels that GroupNorm normalises together; divides 64.

    Raises:
        ConfigError: ``groups`` does not divide the 64 channels of the first layer.

    Source: He et al. 2016, Deep Residual Learning for Image Recognition; Wu and He 2018, Group Normalization.
    """
    if groups < 1 or _STAGES[0][0] % groups:
        raise ConfigError(f"model.groups: {groups} does not divide {_STAGES[0][0]} channels; use 1, 2, 4, 8, 16, 32 or 64.")
    return ResNet18(input_shape, outputs, groups)


MODELS = {"resnet18_gn": resnet18_gn}
