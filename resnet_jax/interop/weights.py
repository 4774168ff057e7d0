"""Weights of other code bases as variables of our network."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.interop import keras_graph, names, onnx_graph, proof, structure
from resnet_jax.interop.names import Named
from resnet_jax.interop.schemes import SCHEMES, Conventions
from resnet_jax.networks import builders, layout
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.squeeze import LAYERS as SE_LAYERS
from resnet_jax.state import Variables
from resnet_jax.weight_files import files

_STATISTICS = ("mean", "var")


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """A network of another code base.

    Attributes:
      model: the network, with unrolled blocks.
      settings: its `model.*` settings, without the prefix.
      variables: {"params", "batch_stats"}, float32.
      scheme: the code base, a key of SCHEMES.
      conventions: see Conventions; those that hold for `variables`.
      elsewhere: names of the file's tensors that are not of this network.
      without_norm: modules of convolutions that have no norm in the file, and here one that changes
        nothing; only in a network whose other convolutions have norms.
    """

    model: ResNet
    settings: Mapping[str, Any]
    variables: Variables
    scheme: str
    conventions: Conventions
    elsewhere: tuple[str, ...]
    without_norm: tuple[str, ...]

    @property
    def image_channels(self) -> int:
        """The channels of the images that the network takes."""
        params = self.variables["params"]
        stem = params["stem_conv1" if "stem_conv1" in params else "stem_conv"]
        return int(stem["kernel"].shape[2])


def load(
    path: str | os.PathLike[str], *, prefix: str | None = None, **conventions: Any
) -> Imported:
    """Reads a network from a file of any format that weight_files knows.

    Args:
      path: of the file.
      prefix: see names.find; without effect for ONNX.
      **conventions: replace those that an ONNX graph shows, or those of the code base's own
        networks; fields of Conventions.

    Raises:
      UserError: the file cannot be read, a tensor is unknown, missing, of a wrong shape or not
        finite, the network is not one of ours, or it computes something else than the file's graph.
        The sentence names the tensor.
    """
    named, assumed = find(path, prefix)
    chosen = dataclasses.replace(assumed, **conventions)
    found = of_named(named, str(path), chosen)
    # A flag may contradict the graph on purpose; a graph cannot tell the order of colours.
    if named.graph is not None and chosen == dataclasses.replace(assumed, order=chosen.order):
        proof.check(
            found.model, found.variables, chosen.order, found.image_channels, named.graph,
            {**named.endpoints}, str(path),
        )  # fmt: skip
    return found


def find(path: str | os.PathLike[str], prefix: str | None = None) -> tuple[Named, Conventions]:
    """Returns a file's tensors by place, and the conventions that load() assumes; see load()."""
    file = files.read(path)
    if file.graph is not None:
        return onnx_graph.find(file.graph, file.tensors, str(path))
    if file.config is not None and file.config["class_name"] in keras_graph.MODELS:
        graph, constants = keras_graph.to_onnx(file.config, file.tensors, str(path))
        named, conventions = onnx_graph.find(graph, constants, str(path))
        kerass = SCHEMES["keras"]
        if any(kerass.place(name) is not None for name in constants):
            # Its layers have the names of Keras applications, whose input is BGR.
            conventions = dataclasses.replace(conventions, order=kerass.conventions.order)
        return named, conventions
    named = names.find(file.tensors, str(path), prefix)
    return named, SCHEMES[named.scheme].conventions


def convert(
    tensors: Mapping[str, np.ndarray], path: str, *, prefix: str | None = None, **conventions: Any
) -> Imported:
    """Converts tensors by their names; see load(). `path` is for messages."""
    named = names.find(tensors, path, prefix)
    assumed = SCHEMES[named.scheme].conventions
    return of_named(named, path, dataclasses.replace(assumed, **conventions))


def of_named(named: Named, path: str, conventions: Conventions) -> Imported:
    """Converts tensors whose places are known; see load(). `path` is for messages."""
    settings = structure.settings(named, conventions, path)
    model = builders.resnet(**settings)
    arrays = _arrays(named, path)
    if settings["norm"] == "batch":
        _fold_biases(arrays)
    if settings["shortcut"] == "A" and conventions.new_channels == "around":
        _move_new_channels_to_the_end(arrays)
    if conventions.order == "BGR":
        first = _stem(arrays)[0]
        arrays[first, "kernel"] = arrays[first, "kernel"][:, :, ::-1]
    return Imported(
        model=model,
        settings=settings,
        variables=_variables(arrays, named, model, path),
        scheme=named.scheme,
        conventions=conventions,
        elsewhere=named.elsewhere,
        without_norm=named.without_norm,
    )


_Arrays = dict[tuple[str, str], np.ndarray]  # (module, leaf) -> float32 in our layout


def _arrays(named: Named, path: str) -> _Arrays:
    arrays: _Arrays = {}
    for place, tensor in named.tensors.items():
        array = np.asarray(tensor, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {named.names[place]!r} has numbers that are not finite.")
        if place.leaf == "kernel" and SCHEMES[named.scheme].is_transposed:
            array = array.T if array.ndim == 2 else np.transpose(array, (2, 3, 1, 0))
        arrays[place.module, place.leaf] = array
    return arrays


def _stem(arrays: _Arrays) -> list[str]:
    """Returns the convolutions of the stem, in order."""
    return sorted(
        module for module, leaf in arrays if module.startswith("stem_conv") and leaf == "kernel"
    )


def _fold_biases(arrays: _Arrays) -> None:
    """Moves the biases of convolutions into the means of the norms behind them."""
    for module, leaf in list(arrays):
        norm = _norm_behind(module)
        if leaf == "bias" and norm is not None and (norm, "mean") in arrays:
            arrays[norm, "mean"] = arrays[norm, "mean"] - arrays.pop((module, leaf))


def _norm_behind(convolution: str) -> str | None:
    *parents, layer = convolution.split("/")
    if "conv" not in layer:
        return None
    return "/".join([*parents, layer.replace("conv", "norm")])


def _move_new_channels_to_the_end(arrays: _Arrays) -> None:
    """Reorders the channels between blocks, so that shortcut A adds its zeros after the old ones.

    A code base that adds half of the zeros before and half after them has the same function with
    its channels in another order. Channels within a block keep theirs.
    """
    order = np.arange(arrays[_stem(arrays)[-1], "kernel"].shape[-1])
    blocks = sorted({m.split("/")[0] for m, _ in arrays if "/" in m}, key=_number)
    for block in blocks:
        last = max(m for m, _ in arrays if m.startswith(f"{block}/conv"))
        first = f"{block}/conv1"
        arrays[first, "kernel"] = arrays[first, "kernel"][:, :, order]
        added = arrays[last, "kernel"].shape[-1] - len(order)
        old = order + added // 2
        new = [channel for channel in range(len(order) + added) if channel not in set(old)]
        order = np.array([*old, *new], int)
        squeeze, excite = (f"{block}/{layer}" for layer in SE_LAYERS)
        if (squeeze, "kernel") in arrays:
            arrays[squeeze, "kernel"] = arrays[squeeze, "kernel"][:, :, order]
        for module in (last, last.replace("conv", "norm"), excite):
            for leaf in ("kernel", "bias", "scale", *_STATISTICS):
                if (module, leaf) in arrays:
                    arrays[module, leaf] = arrays[module, leaf][..., order]
    arrays["logits", "kernel"] = arrays["logits", "kernel"][order]


def _number(block: str) -> tuple[int, int]:
    stage, number = block.removeprefix("stage").split("_block")
    return int(stage), int(number)


def _variables(arrays: _Arrays, named: Named, model: ResNet, path: str) -> Variables:
    """Returns the network's variables; raises UserError unless all arrays are used."""
    side = 32 if model.stem == "cifar" else 224
    channels = arrays[_stem(arrays)[0], "kernel"].shape[2]
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    looped = dataclasses.replace(model, scan=True)  # traced faster

    def initialize(image_BHWC: jax.Array) -> Variables:
        variables = dict(looped.init(jax.random.key(0), image_BHWC, train=False))
        return layout.convert(variables, layout.by_block)

    shapes = jax.eval_shape(initialize, image)
    unused = dict(arrays)

    def fill(keys: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> jax.Array:
        *modules, leaf = (key.key for key in keys[1:])
        module = "/".join(modules)
        array = unused.pop((module, leaf), None)
        if array is None:
            raise UserError(f"{path} has no {leaf} for {module} of our network.")
        if array.shape != wanted.shape:
            raise UserError(
                f"{path}: {_name(named, module, leaf)!r} has, in our layout, the shape "
                f"{array.shape}; this network's is {wanted.shape}."
            )
        return jnp.asarray(array)

    variables: Variables = jax.tree.map_with_path(fill, shapes)
    for module, leaf in unused:
        raise UserError(
            f"{path}: {_name(named, module, leaf)!r} has no place in this network ({module}'s "
            f"{leaf})."
        )
    return variables


def _name(named: Named, module: str, leaf: str) -> str:
    return next(n for p, n in named.names.items() if (p.module, p.leaf) == (module, leaf))
