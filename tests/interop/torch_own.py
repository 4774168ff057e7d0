"""Networks of torchvision, and CIFAR networks in PyTorch: weights, logits and gradients.

    python torch_own.py OUT NAME...    # in an environment with PyTorch, see test_against_others.py

For each NAME, such as imagenet-50-v1, OUT gets NAME.pth (a state_dict with random weights and
statistics) and NAME.npz: images (B, H, W, C), logits, and the gradient of sum(logits * weights) by
parameter.
"""

import pathlib
import sys

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A basic block whose shortcut adds zeros on both sides of the old channels."""

    def __init__(self, before: int, channels: int):
        """`before` are the input's channels; a block with more strides by 2."""
        super().__init__()
        self.stride, self.added = (2, channels - before) if before != channels else (1, 0)
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        """Adds the shortcut to the branch."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class Cifar(nn.Module):
    """6n + 2 layers, with the names of akamaster/pytorch_resnet_cifar10."""

    def __init__(self, n: int):
        """`n` blocks per stage."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        before = 16
        for stage, channels in enumerate((16, 32, 64), start=1):
            blocks = [Block(before if i == 0 else channels, channels) for i in range(n)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = channels
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        """Returns the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def with_strides_of_the_paper(model):
    """Moves the stride of torchvision's bottlenecks to the first 1x1 convolution (v1)."""
    for block in model.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


def randomize(model):
    """Draws the norms' parameters and statistics; the last norm of a branch is small."""
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            ends = name.endswith(("bn3", "downsample.1"))
            norm.weight.data.uniform_(0.1, 0.4 if ends else 1.0)
            norm.bias.data.normal_(0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def write(model, name, size, out):
    """Writes one network's files."""
    images = torch.randn(2, 3, size, size)
    logits = randomize(model)(images)
    weights = torch.randn(logits.shape)
    (logits * weights).sum().backward()
    torch.save(model.state_dict(), out / f"{name}.pth")
    np.savez(
        out / f"{name}.npz",
        images=images.numpy().transpose(0, 2, 3, 1),
        logits=logits.detach().numpy(),
        weights=weights.numpy(),
        **{f"grad.{key}": parameter.grad.numpy() for key, parameter in model.named_parameters()},
    )


def made(name):
    """Returns a new network."""
    family, depth, *version = name.split("-")
    if family == "cifar":
        return Cifar((int(depth) - 2) // 6)
    variants = {"resnext": "resnext50_32x4d", "wide": "wide_resnet50_2"}
    known = [variants[each] for each in version if each in variants]
    model = getattr(torchvision.models, *known or [f"resnet{depth}"])()
    return with_strides_of_the_paper(model) if version == ["v1"] else model


def main():
    """Writes the networks."""
    out, *names = sys.argv[1:]
    for name in names:
        torch.manual_seed(0)
        write(made(name), name, 32 if name.startswith("cifar") else 64, pathlib.Path(out))


if __name__ == "__main__":
    main()
