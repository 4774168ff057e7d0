"""Writes a network as an ONNX model, which other runtimes compute."""

from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError, require_packages
from resnet_jax.interop.export import BLOCKS, to_torchvision, unlike_torchvision
from resnet_jax.networks.architectures import CONVOLUTIONS
from resnet_jax.networks.resnet import ResNet
from resnet_jax.state import Variables

if TYPE_CHECKING:
    import onnx

_OPSET = 17


def to_onnx(
    model: ResNet,
    variables: Variables,
    image_shape: tuple[int, int, int],
    normalization: Normalization | None = None,
) -> "onnx.ModelProto":
    """Returns a model that maps float32 "images" (N, C, H, W), normalised, to "logits" (N, K).

    The batch size N is free. Tensors have torchvision's names. The model computes in float32,
    whatever the network's dtype.

    Args:
      model: the network.
      variables: {"params", "batch_stats"} of one seed, block by block.
      image_shape: (H, W, C).
      normalization: becomes the first layers of the model, whose input is then uint8 "pixels"
        (N, H, W, C).

    Raises:
      UserError: the network has layers that are not exported, or `onnx` is not installed.
    """
    require_packages(["onnx"], "Writing ONNX")
    tensors = to_torchvision(model, variables)
    for name, (value, allowed) in unlike_torchvision(model).items():
        if name in BLOCKS:
            raise UserError(f"model.{name}={value!r} is not exported; allowed is {allowed!r}.")
    return _Writer(model, tensors, image_shape, normalization).model()


class _Writer:
    def __init__(
        self,
        model: ResNet,
        tensors: dict[str, np.ndarray],
        image_shape: tuple[int, int, int],
        normalization: Normalization | None,
    ):
        self._model, self._tensors, self._image_shape = model, tensors, image_shape
        self._normalization = normalization
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}

    def model(self) -> "onnx.ModelProto":
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        height, width, channels = self._image_shape
        images = helper.make_tensor_value_info(
            "images", TensorProto.FLOAT, ["N", channels, height, width]
        )
        if self._normalization is not None:
            images = helper.make_tensor_value_info(
                "pixels", TensorProto.UINT8, ["N", height, width, channels]
            )
            self._normalize(self._normalization)
        self._node(
            "Gemm",
            self._pooled(self._stages(self._stem())),
            "logits",
            ["fc.weight", "fc.bias"],
            transB=1,
        )
        graph = helper.make_graph(
            self._nodes,
            "resnet_jax",
            [images],
            [
                helper.make_tensor_value_info(
                    "logits", TensorProto.FLOAT, ["N", self._model.num_classes]
                )
            ],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in self._constants.items()],
        )
        made = helper.make_model(
            graph, producer_name="resnet_jax", opset_imports=[helper.make_opsetid("", _OPSET)]
        )
        made.ir_version = 8  # of this operator set; runtimes refuse later ones
        onnx.checker.check_model(made)
        return made

    def _normalize(self, normalization: Normalization) -> None:
        """Adds what makes "images" of "pixels", in the order of Normalization.__call__."""
        from onnx import TensorProto

        self._tensors |= {
            "mean": np.asarray(normalization.mean),
            "std": np.asarray(normalization.std),
        }
        x = self._node("Cast", "pixels", "pixels.float", [], to=TensorProto.FLOAT)
        x = self._node("Sub", x, "pixels.centred", ["mean"])
        x = self._node("Div", x, "pixels.normalized", ["std"])
        self._node("Transpose", x, "images", [], perm=[0, 3, 1, 2])

    def _node(
        self, kind: str, inputs: str, output: str, tensors: list[str], **attributes: Any
    ) -> str:
        from onnx import helper

        for name in tensors:
            self._constants[name] = self._tensors[name]
        node = helper.make_node(kind, [inputs, *tensors], [output], name=output, **attributes)
        self._nodes.append(node)
        return output

    def _convolve(
        self, x: str, layer: str, norm: str, stride: int, place: str, groups: int = 1
    ) -> str:
        """Adds a convolution and the norm behind it."""
        size = self._tensors[f"{layer}.weight"].shape[-1]
        bias = [f"{layer}.bias"] if f"{layer}.bias" in self._tensors else []
        y = self._node(
            "Conv", x, f"{layer}.out", [f"{layer}.weight", *bias], kernel_shape=[size, size],
            strides=[stride, stride], group=groups, **self._padding(size, stride, place),
        )  # fmt: skip
        if f"{norm}.weight" not in self._tensors:
            return y
        leaves = [f"{norm}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
        return self._node(
            "BatchNormalization", y, f"{norm}.out", leaves, epsilon=self._model.bn_epsilon
        )

    def _padding(self, size: int, stride: int, place: str) -> dict[str, Any]:
        if stride == 2 and place in self._model.same_padding:
            return {"auto_pad": "SAME_UPPER"}
        return {"pads": [size // 2] * 4}

    def _relu(self, x: str) -> str:
        return self._node("Relu", x, f"{x}.relu", [])

    def _stem(self) -> str:
        x, is_cifar = "images", self._model.stem == "cifar"
        layers = {"conv1": ("bn1", 1 if is_cifar else 2)}
        if self._model.stem == "deep":
            layers = {"conv1.0": ("conv1.1", 2), "conv1.3": ("conv1.4", 1), "conv1.6": ("bn1", 1)}
        for layer, (norm, stride) in layers.items():
            x = self._relu(self._convolve(x, layer, norm, stride, "stem"))
        if is_cifar:
            return x
        padding = self._padding(3, 2, "pool")
        return self._node("MaxPool", x, "pool", [], kernel_shape=[3, 3], strides=[2, 2], **padding)

    def _stages(self, x: str) -> str:
        count = CONVOLUTIONS[self._model.arch.block]
        strides_at = 1 if count == 2 or self._model.bottleneck_stride == "v1" else 2
        for stage, size in enumerate(self._model.arch.stage_sizes, start=1):
            for block in range(size):
                stride = 2 if stage > 1 and block == 0 else 1
                layer, y = f"layer{stage}.{block}", x
                for number in range(1, count + 1):
                    y = self._convolve(
                        y, f"{layer}.conv{number}", f"{layer}.bn{number}",
                        stride if number == strides_at else 1, "blocks",
                        self._model.groups if number == 2 else 1,
                    )  # fmt: skip
                    y = self._relu(y) if number < count else y
                x = self._relu(self._added(x, y, layer, stride))
        return x

    def _added(self, x: str, y: str, layer: str, stride: int) -> str:
        """Adds the shortcut of a block to its branch, unless the network is plain."""
        from onnx import helper

        if self._model.shortcut == "none":
            return y
        first = 0
        if self._model.shortcut_downsampling == "mean":
            first = 1
            if stride == 2:
                x, stride = self._mean(x, layer), 1
        if f"{layer}.downsample.{first}.weight" in self._tensors:
            convolution, norm = (f"{layer}.downsample.{first + i}" for i in range(2))
            x = self._convolve(x, convolution, norm, stride, "")
        else:
            x = self._with_more_channels(x, layer, stride)
        self._nodes.append(helper.make_node("Add", [y, x], [f"{layer}.sum"], name=f"{layer}.sum"))
        return f"{layer}.sum"

    def _mean(self, x: str, layer: str) -> str:
        return self._node(
            "AveragePool", x, f"{layer}.means", [], kernel_shape=[2, 2], strides=[2, 2],
            ceil_mode=1, count_include_pad=0,
        )  # fmt: skip

    def _with_more_channels(self, x: str, layer: str, stride: int) -> str:
        """Shortcut A: every stride-th position, and zeros after the old channels."""
        old = self._tensors[f"{layer}.conv1.weight"].shape[1]
        last = CONVOLUTIONS[self._model.arch.block]
        added = self._tensors[f"{layer}.conv{last}.weight"].shape[0] - old
        if stride == 1 and not added:
            return x
        constants = {
            "starts": np.array([0, 0]), "ends": np.array([2**31, 2**31]),
            "axes": np.array([2, 3]), "steps": np.array([stride, stride]),
            "pads": np.array([0, 0, 0, 0, 0, added, 0, 0]),
        }  # fmt: skip
        self._tensors |= {f"{layer}.{name}": array for name, array in constants.items()}
        names = [f"{layer}.{name}" for name in constants]
        if stride == 2:
            x = self._node("Slice", x, f"{layer}.half", names[:4])
        return self._node("Pad", x, f"{layer}.shortcut", names[4:])

    def _pooled(self, x: str) -> str:
        return self._node("Flatten", self._node("GlobalAveragePool", x, "pooled", []), "flat", [])
