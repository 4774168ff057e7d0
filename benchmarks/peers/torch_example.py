"""PyTorch's fastest training step, and an ordinary PyTorch loop with a data loader.

The network is written here because torchvision has no CIFAR networks, plain networks, shortcuts A
and C, or bottlenecks with the paper's stride. Its modules have the names of our parameters.
"""

import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.ours import Program, Work
from resnet_jax.data.augment import Normalization
from resnet_jax.networks.architectures import architecture
from resnet_jax.parallel.cores import usable_cores

_LOSS_EVERY = 10  # steps; reading the loss waits for the device
_MAX_WORKERS = 8
_PREFETCH = 2  # batches per worker, PyTorch's default


class Block(nn.Module):
    """A residual block, or a plain one ("none"); post-activation.

    Args:
      kind: "basic" or "bottleneck".
      channels: the input's channels.
      filters: the 3x3 convolutions' filters.
      stride: the block's stride.
      model: the config's `model` section.
    """

    def __init__(self, kind: str, channels: int, filters: int, stride: int, model: ConfigDict):
        super().__init__()
        if kind == "basic":
            layers = [(filters, 3, stride), (filters, 3, 1)]
        else:
            v1 = model.bottleneck_stride == "v1"
            layers = [(filters, 1, stride if v1 else 1), (filters, 3, 1 if v1 else stride)]
            layers.append((4 * filters, 1, 1))
        self.count, self.stride, self.kind = len(layers), stride, model.shortcut
        width = channels
        for number, (layer_filters, size, layer_stride) in enumerate(layers, start=1):
            self.add_module(f"conv{number}", _conv(width, layer_filters, size, layer_stride))
            self.add_module(f"norm{number}", _norm(layer_filters, model))
            width = layer_filters
        self.missing = width - channels
        changes = stride != 1 or self.missing != 0
        self.projects = self.kind == "C" or (self.kind == "B" and changes)
        if self.projects:
            self.shortcut_conv = _conv(channels, width, 1, stride)
            self.shortcut_norm = _norm(width, model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to (B, channels of the block, H / stride, W / stride)."""
        y = x
        for number in range(1, self.count + 1):
            y = self.get_submodule(f"norm{number}")(self.get_submodule(f"conv{number}")(y))
            if number < self.count:
                y = F.relu(y)
        if self.projects:
            y = y + self.shortcut_norm(self.shortcut_conv(x))
        elif self.kind != "none":
            if self.stride != 1:
                x = x[:, :, :: self.stride, :: self.stride]
            y = y + (F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x)
        return F.relu(y)


class ResNet(nn.Module):
    """A plain or residual network of a resolved config's `model` section."""

    def __init__(self, model: ConfigDict, channels: int):
        super().__init__()
        arch = architecture(model.family, model.depth)
        self.pools = model.stem == "imagenet"
        size, stride = (7, 2) if self.pools else (3, 1)
        self.stem_conv = _conv(channels, arch.filters[0], size, stride)
        self.stem_norm = _norm(arch.filters[0], model)
        self.blocks, channels = [], arch.filters[0]
        for stage, count in enumerate(arch.stage_sizes, start=1):
            for number in range(1, count + 1):
                filters = arch.filters[stage - 1]
                stride = 2 if stage > 1 and number == 1 else 1
                block = Block(arch.block, channels, filters, stride, model)
                self.blocks.append(f"stage{stage}_block{number}")
                self.add_module(self.blocks[-1], block)
                channels = filters * (1 if arch.block == "basic" else 4)
        self.logits = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps normalised images (B, C, H, W) to logits (B, num_classes)."""
        x = F.relu(self.stem_norm(self.stem_conv(images)))
        if self.pools:
            x = F.max_pool2d(x, 3, 2, padding=1)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.logits(x.mean((2, 3)))


def _conv(channels: int, filters: int, size: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def _norm(channels: int, model: ConfigDict) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, model.bn_epsilon, 1 - model.bn_momentum)


def torch_device() -> torch.device:
    """Returns the GPU if PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compile_mode(mode: str) -> str:
    """Returns torch.compile's mode, or "none"; resolves "auto" for this machine."""
    if mode != "auto":
        return mode
    if torch_device().type == "cuda":
        return "reduce-overhead"  # with CUDA graphs
    return "default" if shutil.which(os.environ.get("CXX", "g++")) else "none"


def _start(config: ConfigDict, channels: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(config.seed)
    # XLA's defaults: autotuned convolutions, in TensorFloat-32.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    net = ResNet(config.model, channels).to(torch_device(), memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(),
        config.schedule.rate,
        config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        nesterov=config.optimizer.nesterov,
        fused=True,
    )
    return net.train(), optimizer


def _step(
    net: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    half: bool,
) -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _wait() -> None:
    if torch_device().type == "cuda":
        torch.cuda.synchronize()


def make(work: Work, mode: str) -> Program:
    """Returns a program that trains on a single normalised batch.

    It uses channels last, autocast to bfloat16 and a fused SGD; `mode` is torch.compile's, or
    "none".
    """
    config = work.config
    pixels, numbers = work.normalised_batch()
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    images = images.to(torch_device(), memory_format=torch.channels_last)
    labels = torch.from_numpy(numbers.astype(np.int64)).to(torch_device())
    net, optimizer = _start(config, images.shape[1])
    half = config.model.dtype == "bfloat16"
    torch.compiler.reset()  # drops programs of another depth
    compiled = net if mode == "none" else torch.compile(net, mode=mode)

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = _step(compiled, optimizer, images, labels, half)
        _wait()
        return float(loss)

    return Program(run)


# ------------------------------------------------------------------------- an ordinary loop


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, with torchvision's random crops and flips of Pillow images."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, pad: int, norm: Normalization):
        from torchvision import transforms

        self.images, self.labels = images, labels
        mean, std = (np.ravel(np.mean(a, axis=(0, 1, 2))) / 255 for a in (norm.mean, norm.std))
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=pad),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
            ]
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        """Returns an augmented image and its class."""
        return self.transform(Image.fromarray(self.images[number])), int(self.labels[number])


def workers() -> int:
    """Returns the number of the data loader's processes."""
    return min(_MAX_WORKERS, len(usable_cores()))


def make_loop(work: Work) -> Program:
    """Returns an eager loop over a shuffled DataLoader, as such loops are usually written.

    The loader has one process per core, at most eight. Batches are copied to the device, and the
    loss is read every ten steps. Nothing is fused or compiled, and channels come first; only
    cuDNN's autotuning is on.
    """
    config, on_gpu = work.config, torch_device().type == "cuda"
    pictures = _Pictures(work.images, work.labels, config.data.pad, work.normalization)
    loader = DataLoader(
        pictures,
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers(),
        prefetch_factor=_PREFETCH,
        persistent_workers=True,
        pin_memory=on_gpu,
        # JAX already has threads, which a fork would not copy.
        multiprocessing_context="spawn",
    )
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    net = ResNet(config.model, work.images.shape[-1]).to(torch_device()).train()
    o = config.optimizer
    optimizer = torch.optim.SGD(
        net.parameters(),
        config.schedule.rate,
        o.momentum,
        weight_decay=o.weight_decay,
        nesterov=o.nesterov,
    )
    half = config.model.dtype == "bfloat16"

    def endless() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def run(steps: int) -> float:
        for number in range(steps):
            images, labels = next(batches)
            images = images.to(torch_device(), non_blocking=on_gpu)
            labels = labels.to(torch_device(), non_blocking=on_gpu)
            loss = _step(net, optimizer, images, labels, half)
            if number % _LOSS_EVERY == 0:
                loss.item()
        _wait()
        return loss.item()

    return Program(run, ahead=_PREFETCH * workers() + 1)
