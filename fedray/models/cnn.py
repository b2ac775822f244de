"""Small convolutional networks for images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedray.models.shapes import channel_axis, image_shape


def fedavg_cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The FedAvg paper's CNN: two 5x5 convolutions (32, 64), 512 units; 1,663,370 parameters on MNIST.

    Takes [n, channels, height, width] (or [n, height, width]); gives [n, outputs].

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3.
    """
    channels, height, width = image_shape("fedavg_cnn", input_shape, smallest=4)
    return nn.Sequential(
        OrderedDict(
            **channel_axis(input_shape),
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * (height // 4) * (width // 4), 512),
            relu3=nn.ReLU(),
            fc2=nn.Linear(512, outputs),
        )
    )


def lenet(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling: 6 and 16 channels, 120 and 84 units; 28x28 is padded to 32x32.

    Takes [n, channels, height, width] (or [n, height, width]); gives [n, outputs]. 61,706 parameters
    on MNIST, 62,006 on CIFAR-10.

    Source: LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition.
    """
    channels, height, width = image_shape("lenet", input_shape, smallest=12)
    padding = 2 if min(height, width) < 32 else 0
    high, wide = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        OrderedDict(
            **channel_axis(input_shape),
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * high * wide, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, outputs),
        )
    )


def opacus_cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The CNN of Opacus' DP-SGD example on MNIST; 26,010 parameters there.

    Takes [n, channels, height, width] (or [n, height, width]); gives [n, outputs].

    Source: Yousefpour et al. 2021, Opacus: User-Friendly Differential Privacy Library in PyTorch (examples/mnist.py).
    """
    channels, height, width = image_shape("opacus_cnn", input_shape, smallest=14)
    high, wide = (((side - 2) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        OrderedDict(
            **channel_axis(input_shape),
            conv1=nn.Conv2d(channels, 16, 8, stride=2, padding=3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2, stride=1),
            conv2=nn.Conv2d(16, 32, 4, stride=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2, stride=1),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * high * wide, 32),
            relu3=nn.ReLU(),
            fc2=nn.Linear(32, outputs),
        )
    )


MODELS = {"fedavg_cnn": fedavg_cnn, "lenet": lenet, "opacus_cnn": opacus_cnn}
