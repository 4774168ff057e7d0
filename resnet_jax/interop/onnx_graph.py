"""Finds a ResNet in an ONNX graph by its structure; names in such files say nothing.

Every addition of two activations ends a block. Going back from its two terms to the activation that
both come from, the path with more convolutions is the branch, the other one the shortcut. A block
that strides begins a stage. The graph also tells what tensors alone cannot: strides, padding and
epsilon. Activations are not looked at: proof.py computes the graph and the network found in it.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.interop.names import Named
from resnet_jax.interop.schemes import SCHEMES, Conventions, Place
from resnet_jax.weight_files.refusals import shown

if TYPE_CHECKING:
    import onnx

# Operations of one activation that a network may have around its layers.
_PLAIN = {
    "Relu", "Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Cast", "Softmax",
    "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Slice", "Pad",
}  # fmt: skip
_LAYERS = {"Conv", "BatchNormalization", "MatMul", "Gemm", "Add"}
# Padding (top, left, bottom, right) of layers of stride 2, by the size of their windows.
_SYMMETRIC = {7: (3, 3, 3, 3), 3: (1, 1, 1, 1), 1: (0, 0, 0, 0)}
_SAME = {7: (2, 2, 3, 3), 3: (0, 0, 1, 1), 1: (0, 0, 0, 0)}  # of an even length


def find(
    graph: "onnx.ModelProto", tensors: dict[str, np.ndarray], path: str
) -> tuple[Named, Conventions]:
    """Returns a graph's tensors by place, in our layout, and the conventions that it shows.

    Args:
      graph: the model.
      tensors: its constants by name, see weight_files.files.
      path: of the file, for messages.

    Raises:
      UserError: it is not a residual network of ours; the sentence names the node.
    """
    try:
        return _Network(graph, tensors, path).found()
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        # A damaged file may lack any input, constant or attribute, or have another in its place.
        raise UserError(
            f"{path}: its graph lacks a part or is damaged ({type(e).__name__}: {shown(e)})."
        ) from e


class _Network:
    """A graph, and the network found in it so far."""

    def __init__(self, graph: "onnx.ModelProto", tensors: dict[str, np.ndarray], path: str):
        self._nodes = [n for n in graph.graph.node if n.op_type not in ("Constant", "Shape")]
        self._graph, self._constants = graph, tensors
        self._path = path
        self._producer = {output: node for node in self._nodes for output in node.output}
        self._users: dict[str, list[Any]] = {}
        for node in self._nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._tensors: dict[Place, np.ndarray] = {}
        self._names: dict[Place, str] = {}
        self._epsilons: set[float] = set()
        self._padding: dict[str, set[bool]] = {"stem": set(), "pool": set(), "blocks": set()}
        self._strided: set[str] = set()  # of the layers that stride in bottlenecks' first blocks
        self._added: set[str] = set()  # where shortcut A adds channels
        self._downsampling: set[str] = set()  # how shortcuts halve height and width
        self._endpoints: dict[str, str] = {}  # see proof.check
        self._bare: dict[Place, str] = {}  # kernels without a norm behind them

    def found(self) -> tuple[Named, Conventions]:
        """Walks through the graph."""
        for node in self._nodes:
            if node.op_type not in _PLAIN | _LAYERS:
                self._refuse(node, "is not an operation of a network that is known here")
        additions = [n for n in self._nodes if n.op_type == "Add" and len(self._data(n)) == 2]
        if not additions:
            raise UserError(f"{self._path} adds no two activations, so it has no residual block.")
        stage = block = 0
        for addition in additions:
            branch, shortcut, start = self._paths(addition)
            if not stage:
                self._stem(start)
            strides = [_strides(node) for node in (*branch, *shortcut)]
            stage, block = (stage + 1, 1) if not stage or 2 in strides else (stage, block + 1)
            for number, convolution in enumerate(branch, start=1):
                in_groups = number == 2 and len(branch) == 3
                self._convolution(convolution, stage, block, f"conv{number}", in_groups)
                if _strides(convolution) == 2 and len(branch) == 3:
                    self._strided.add(f"conv{number}")
            for convolution in shortcut:
                self._convolution(convolution, stage, block, "shortcut_conv")
            self._endpoints[f"stage{stage}"] = addition.output[0]
        self._classifier()
        conventions = self._conventions()
        if self._epsilons:
            self._add_norms(conventions.epsilon)
        read = {self._names[place] for place in self._tensors}
        return (
            Named(
                scheme="graph",
                prefix="",
                tensors=self._tensors,
                names=self._names,
                elsewhere=tuple(name for name in self._constants if name not in read),
                graph=self._graph,
                endpoints=self._endpoints,
                without_norm=tuple(p.module for p in self._bare) if self._epsilons else (),
            ),
            conventions,
        )

    def _refuse(self, node: Any, why: str) -> None:
        label = node.name or node.output[0]
        raise UserError(f"{self._path}: the node {label!r} ({node.op_type}) {why}.")

    def _data(self, node: Any) -> list[str]:
        """Returns a node's inputs that are activations."""
        return [name for name in node.input if name and name not in self._constants]

    def _back(self, name: str) -> list[str]:
        """Returns an activation and those it comes from, back to an addition or the input."""
        names = [name]
        while (node := self._producer.get(names[-1])) is not None and len(self._data(node)) == 1:
            names.append(self._data(node)[0])
        return names

    def _paths(self, addition: Any) -> tuple[list[Any], list[Any], str]:
        """Returns a block's convolutions on the branch and the shortcut, and its input."""
        first, second = (self._back(name) for name in self._data(addition))
        start = next((name for name in first if name in second), "")
        if not start:
            self._refuse(addition, "adds two activations that come from no common one")
        paths = [
            [self._producer[name] for name in names[: names.index(start)]][::-1]
            for names in (first, second)
        ]
        for node in (*paths[0], *paths[1]):
            self._note_channels(node)
        paths.sort(key=lambda path: len(_convolutions(path)))
        self._note_downsampling(*paths)
        shortcut, branch = map(_convolutions, paths)
        if len(branch) not in (2, 3) or len(shortcut) > 1:
            self._refuse(
                addition,
                f"ends a block with {len(branch)} and {len(shortcut)} convolutions; allowed are 2 "
                "or 3, and at most 1 on the shortcut",
            )
        return branch, shortcut, start

    def _stem(self, start: str) -> None:
        """Reads the layers before the first block, whose input is `start`."""
        nodes = [self._producer[name] for name in self._back(start) if name in self._producer]
        convolutions = _convolutions(nodes[::-1])
        strides = [_strides(node) for node in convolutions]
        if len(strides) != 1 and strides != [2, 1, 1]:
            self._refuse(
                nodes[-1],
                f"begins a stem of {len(strides)} convolutions with strides {strides}; allowed are "
                "1, or 3 with strides [2, 1, 1]",
            )
        for number, node in enumerate(convolutions, start=1):
            self._convolution(node, 0, 0, f"stem_conv{number if len(strides) > 1 else ''}")
        for node in nodes:
            if node.op_type == "MaxPool":
                self._note_padding(node, "pool", 3)

    def _convolution(
        self, node: Any, stage: int, block: int, layer: str, in_groups: bool = False
    ) -> None:
        """Reads a convolution, which may have groups, and the BatchNorm behind it, if any."""
        kernel, *bias = node.input[1:]
        size = self._constants[kernel].shape[-1]
        if _attributes(node).get("group", 1) != 1 and not in_groups:
            self._refuse(
                node, "has groups; only the 3 x 3 convolution of a bottleneck may have them"
            )
        self._note_padding(node, "blocks" if block else "stem", size)
        array = np.transpose(self._constants[kernel], (2, 3, 1, 0))
        place = Place(stage, block, layer, "kernel")
        self._add(place, kernel, array)
        for name in bias:
            self._add(place._replace(leaf="bias"), name, self._constants[name])
        users = self._users.get(node.output[0], [])
        if [user.op_type for user in users] != ["BatchNormalization"]:
            self._bare[place] = kernel
        else:
            (norm,) = users
            # A float32: the shortest decimal number that rounds to it is what its author wrote.
            epsilon = np.float32(_attributes(norm).get("epsilon", 1e-5))
            self._epsilons.add(float(str(epsilon)))
            leaves = ("scale", "bias", "mean", "var")
            for leaf, name in zip(leaves, norm.input[1:], strict=True):
                place = Place(stage, block, layer.replace("conv", "norm"), leaf)
                self._add(place, name, self._constants[name])

    def _add_norms(self, epsilon: float) -> None:
        """Puts a norm that changes nothing behind each convolution without one."""
        for place, name in self._bare.items():
            layer = place.layer.replace("conv", "norm")
            ones = np.ones(self._tensors[place].shape[-1], np.float32)
            leaves = {"scale": np.sqrt(ones + epsilon), "bias": 0 * ones, "mean": 0 * ones}
            for leaf, array in {**leaves, "var": ones}.items():
                self._add(place._replace(layer=layer, leaf=leaf), name, array)

    def _add(self, place: Place, name: str, array: np.ndarray) -> None:
        self._tensors[place], self._names[place] = array, name

    def _note_padding(self, node: Any, layer: str, size: int) -> None:
        """Notes how a layer of stride 2 pads; refuses a padding that no network of ours has."""
        attributes = _attributes(node)
        auto = attributes.get("auto_pad", b"NOTSET").decode()
        pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
        is_known = size in _SYMMETRIC and _strides(node) in (1, 2)
        if is_known and _strides(node) == 1:
            is_known = auto == "SAME_UPPER" or pads == _SYMMETRIC[size]
        elif is_known and size > 1:
            is_same = auto == "SAME_UPPER" or pads == _SAME[size]
            is_known = is_same or pads == _SYMMETRIC[size]
            self._padding[layer].add(is_same)
        if not is_known:
            self._refuse(node, f"pads {pads} for windows of {size} and stride {_strides(node)}")

    def _note_channels(self, node: Any) -> None:
        """Notes where shortcut A adds channels; refuses other paddings of a shortcut."""
        if node.op_type != "Pad":
            return
        pads = self._constants.get(node.input[1], np.zeros(0)).tolist()  # of 4 axes, twice
        before, after = (pads[1], pads[5]) if len(pads) == 8 else (0, 0)
        if sum(pads) != before + after or before not in (0, after):
            self._refuse(node, f"pads {pads}; allowed are channels, after the old or around them")
        self._added.add("around" if before else "after")

    def _note_downsampling(self, shortcut: list[Any], branch: list[Any]) -> None:
        """Notes how a shortcut halves its input; refuses other pools in a block."""
        for node in (*shortcut, *branch):
            if node.op_type == "AveragePool":
                attributes = _attributes(node)
                is_known = list(attributes["kernel_shape"]) == [2, 2] and _strides(node) == 2
                if node not in shortcut or not is_known or any(attributes.get("pads", ())):
                    self._refuse(node, "pools in a block; only shortcuts may, by 2 x 2 positions")
                self._downsampling.add("mean")
        for node in shortcut:
            if node.op_type == "Slice" or (node.op_type == "Conv" and _strides(node) == 2):
                self._downsampling.add("stride")

    def _classifier(self) -> None:
        """Reads the fully connected layer."""
        layers = [node for node in self._nodes if node.op_type in ("MatMul", "Gemm")]
        if len(layers) != 1:
            raise UserError(f"{self._path} has {len(layers)} fully connected layers, not 1.")
        (node,) = layers
        kernel, *bias = node.input[1:]
        is_transposed = _attributes(node).get("transB", 0)
        if node.op_type == "MatMul":
            users = [u for u in self._users[node.output[0]] if u.op_type == "Add"]
            bias = [name for user in users for name in user.input if name in self._constants]
            node = users[0] if users else node
        self._endpoints["logits"] = node.output[0]
        array = self._constants[kernel]
        array = array.T if is_transposed else array
        self._add(Place(0, 0, "logits", "kernel"), kernel, array)
        for name in bias:
            self._add(Place(0, 0, "logits", "bias"), name, self._constants[name])

    def _conventions(self) -> Conventions:
        mixed = [f"paddings ({k})" for k, same in self._padding.items() if len(same) == 2]
        kinds: dict[str, set[Any]] = {
            "epsilons": self._epsilons,
            "strides": self._strided,
            "shortcuts": self._added,
            "ways to halve a shortcut": self._downsampling,
        }
        mixed += [kind for kind, values in kinds.items() if len(values) > 1]
        if mixed:
            raise UserError(f"{self._path} has layers with different {mixed[0]}; allowed is one.")
        return dataclasses.replace(
            SCHEMES["graph"].conventions,
            bottleneck_stride="v1.5" if "conv2" in self._strided else "v1",
            same_padding=tuple(layer for layer, same in self._padding.items() if True in same),
            shortcut_downsampling="mean" if "mean" in self._downsampling else "stride",
            epsilon=next(iter(self._epsilons), 1e-5),
            new_channels=next(iter(self._added), "after"),
        )


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _convolutions(nodes: list[Any]) -> list[Any]:
    return [node for node in nodes if node.op_type == "Conv"]


def _strides(node: Any) -> int:
    """Returns the stride of a convolution or a pool; -1 if height and width differ."""
    strides = set(_attributes(node).get("strides", [1]))
    return int(strides.pop()) if len(strides) == 1 else -1
