"""The plain Flax training step, after Flax's ImageNet example.

It uses flax.linen's BatchNorm over the whole batch, weight decay as a term of the loss, optax.sgd
and one `jax.jit` with a donated TrainState. To compute the same as our network, it differs from the
example in three ways: depths come from our table and padding is symmetric; all kinds of shortcut
are supported; and a block's last scale starts at 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state
from jax.stages import Wrapped
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from benchmarks.peers.ours import Program, Work
from resnet_jax.data import sets
from resnet_jax.networks.architectures import Architecture, architecture
from resnet_jax.networks.builders import DTYPES
from resnet_jax.pytree import PyTree

ModuleFactory = Callable[..., Callable[[jax.Array], jax.Array]]


class Block(nn.Module):
    """A residual block, or a plain one.

    Attributes:
      kind: "basic" or "bottleneck".
      filters: the 3x3 convolutions' filters.
      stride: the block's stride.
      shortcut: "none", "A", "B" or "C".
      stride_on_3x3: whether a bottleneck is v1.5 instead of v1.
      conv, norm: partial layers, which lack only the arguments of each use.
    """

    kind: str
    filters: int
    stride: int
    shortcut: str
    stride_on_3x3: bool
    conv: ModuleFactory
    norm: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, channels of the block)."""
        if self.kind == "basic":
            y = self._conv(x, self.filters, 3, self.stride, "1")
            y = self._conv(nn.relu(y), self.filters, 3, 1, "2")
        else:
            first, second = (1, self.stride) if self.stride_on_3x3 else (self.stride, 1)
            y = self._conv(x, self.filters, 1, first, "1")
            y = self._conv(nn.relu(y), self.filters, 3, second, "2")
            y = self._conv(nn.relu(y), 4 * self.filters, 1, 1, "3")
        if self.shortcut == "none":
            return nn.relu(y)
        changes = x.shape != y.shape
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            x = self.conv(y.shape[-1], (1, 1), self.stride, padding=0, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x)
        elif changes:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        return nn.relu(x + y)

    def _conv(self, x: jax.Array, filters: int, size: int, stride: int, number: str) -> jax.Array:
        conv = self.conv(filters, (size, size), stride, padding=size // 2, name=f"conv{number}")
        return self.norm(name=f"norm{number}")(conv(x))


class ResNet(nn.Module):
    """A plain or residual network; attributes as in resnet_jax.networks.resnet."""

    arch: Architecture
    num_classes: int
    shortcut: str
    bottleneck_stride: str
    stem: str
    dtype: DTypeLike
    bn_momentum: float
    bn_epsilon: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = True) -> jax.Array:
        """Maps normalised images (B, H, W, C) to float32 logits (B, num_classes)."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            dtype=self.dtype,
        )
        large = self.stem == "imagenet"
        size, stride = (7, 2) if large else (3, 1)
        x = images.astype(self.dtype)
        x = conv(self.arch.filters[0], (size, size), stride, padding=size // 2, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.arch.stage_sizes, start=1):
            for block in range(1, blocks + 1):
                x = Block(
                    kind=self.arch.block,
                    filters=self.arch.filters[stage - 1],
                    stride=2 if stage > 1 and block == 1 else 1,
                    shortcut=self.shortcut,
                    stride_on_3x3=self.bottleneck_stride == "v1.5",
                    conv=conv,
                    norm=norm,
                    name=f"stage{stage}_block{block}",
                )(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


def network(model: ConfigDict) -> ResNet:
    """Builds the network of a resolved config's `model` section."""
    return ResNet(
        arch=architecture(model.family, model.depth),
        num_classes=model.num_classes,
        shortcut=model.shortcut,
        bottleneck_stride=model.bottleneck_stride,
        stem=model.stem,
        dtype=DTYPES[model.dtype],
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
    )


class TrainState(train_state.TrainState):
    """Flax's TrainState with BatchNorm's moving averages."""

    batch_stats: PyTree


def loss_of(
    net: ResNet, params: optax.Params, batch_stats: PyTree, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
    """Returns the mean cross-entropy in nats and (the new batch_stats, the logits)."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = net.apply(variables, images, mutable=["batch_stats"])
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets).mean(), (updated["batch_stats"], logits)


def shapes(config: ConfigDict, device: jax.Device) -> tuple[Wrapped, tuple[PyTree, ...]]:
    """Returns the jitted training step and the shapes of its arguments.

    They are for compiling only, so the device may be absent (target.py).
    """
    batch_size, shape = config.batch_size, sets.image_shape(config.data)
    images = jax.ShapeDtypeStruct((batch_size, *shape), DTYPES[config.model.dtype])
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    net = network(config.model)
    arguments = (jax.eval_shape(lambda images: _start(net, config, images), images), images, labels)
    sharding = jax.sharding.SingleDeviceSharding(device)
    return _make_step(net, config), jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments
    )


def make(work: Work) -> Program:
    """Returns a program that trains on a single normalised batch."""
    config = work.config
    net = network(config.model)
    step = _make_step(net, config)
    pixels, numbers = work.normalised_batch()
    images = jnp.asarray(pixels, DTYPES[config.model.dtype])
    labels = jnp.asarray(numbers)
    state = jax.jit(lambda images: _start(net, config, images))(images)

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, images, labels)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Program(run)


def _start(net: ResNet, config: ConfigDict, images: jax.Array) -> TrainState:
    variables = net.init(jax.random.key(config.seed), images[:1])
    optimizer = config.optimizer
    return TrainState.create(
        apply_fn=net.apply,
        params=variables["params"],
        tx=optax.sgd(config.schedule.rate, optimizer.momentum, optimizer.nesterov),
        batch_stats=variables["batch_stats"],
    )


def _make_step(net: ResNet, config: ConfigDict) -> Wrapped:
    def step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def penalised(params: optax.Params) -> tuple[jax.Array, tuple[PyTree, ...]]:
            loss, rest = loss_of(net, params, state.batch_stats, images, labels)
            squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1)
            return loss + 0.5 * config.optimizer.weight_decay * squares, (loss, *rest)

        grads, (loss, batch_stats, logits) = jax.grad(penalised, has_aux=True)(state.params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        return state, {"loss": loss, "accuracy": accuracy}

    return jax.jit(step, donate_argnums=0)
