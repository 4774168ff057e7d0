"""Computes a model's graph and the network that was found in it on the same pictures.

The reader of graphs ignores activations and some options of operations. If they differ from the
network's, so do the numbers.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import STEMS
from resnet_jax.networks.features import features
from resnet_jax.networks.resnet import ResNet
from resnet_jax.state import Variables
from resnet_jax.weight_files.refusals import reason

if TYPE_CHECKING:
    import onnx

# Of the largest number of an endpoint. Two ways to compute a network of 152 layers differ by 1e-5.
_LIMIT = 1e-3
_HALF_LIMIT = 5e-2  # of a graph that computes in 16 bits
# Pictures of normalised pixels, and of pixels from 0 to 255: the first nearly vanish beside the
# biases of a network that takes the second.
_SCALES = (1.0, 100.0)


def check(
    model: ResNet,
    variables: Variables,
    order: str,
    channels: int,
    graph: "onnx.ModelProto",
    endpoints: dict[str, str],
    path: str,
) -> None:
    """Raises UserError unless a network computes what a graph computes, on two random pictures.

    Args:
      model: the network.
      variables: {"params", "batch_stats"}.
      order: of the colours in the graph's input, "RGB" or "BGR"; the network takes RGB.
      channels: of the pictures.
      graph: the model.
      endpoints: endpoint, such as "stage1" or "logits" -> the graph's activation, (N, C, H, W) or
        (N, classes), before the ReLU if a stage ends with one.
      path: of the file, for messages.
    """
    from onnx.reference import ReferenceEvaluator

    side = 32 if STEMS[model.stem] == 1 else 224
    name, shape, is_last = _input(graph, channels, side, path)
    compute = jax.jit(lambda v, images_BHWC: features(model, v, images_BHWC, [*endpoints]))
    for number, scale in enumerate(_SCALES):
        images_BHWC = scale * np.asarray(jax.random.normal(jax.random.key(number), shape))
        theirs_BHWC = images_BHWC[..., ::-1] if order == "BGR" else images_BHWC
        given = theirs_BHWC if is_last else theirs_BHWC.transpose(0, 3, 1, 2)
        try:
            evaluator: Any = ReferenceEvaluator(graph)  # its types leave out `intermediate`
            computed = evaluator.run(None, {name: given}, intermediate=True)
        except Exception as e:  # an evaluator of any operation raises errors of any type
            raise UserError(f"{path}: its graph cannot be computed ({reason(e)}).") from e
        ours = compute(variables, images_BHWC)
        for endpoint, activation in endpoints.items():
            _compare(endpoint, np.asarray(ours[endpoint]), computed[activation], path)


def _input(
    graph: "onnx.ModelProto", channels: int, side: int, path: str
) -> tuple[str, tuple[int, int, int, int], bool]:
    """Returns the input's name, the shape (1, H, W, C), and whether its channels are last."""
    constants = {each.name for each in graph.graph.initializer}
    inputs = [each for each in graph.graph.input if each.name not in constants]
    shapes = [[dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in inputs]
    if [len(shape) for shape in shapes] != [4]:
        raise UserError(f"{path}: its graph does not have one input of four axes.")
    name, sides = inputs[0].name, shapes[0][1:]  # 0 if any size is allowed
    is_last = sides[2] == channels and sides[0] != channels
    if channels not in (sides[0], sides[2]):
        is_last = any(n.op_type == "Transpose" and name in n.input for n in graph.graph.node)
    height, width = sides[:2] if is_last else sides[1:]
    return name, (1, height or side, width or side, channels), is_last


def _compare(endpoint: str, ours: np.ndarray, theirs: np.ndarray, path: str) -> None:
    limit = _LIMIT if theirs.dtype == np.float32 else _HALF_LIMIT
    wanted = theirs.astype(np.float32)
    if wanted.ndim == 4:
        wanted = np.maximum(wanted.transpose(0, 2, 3, 1), 0)
    if wanted.shape != ours.shape:
        by = f"which is of {wanted.shape} there and of {ours.shape} here"
    else:
        error = np.abs(ours - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        if error <= limit:  # False for NaN
            return
        by = f"by {error:.2g} of its largest number"
    raise UserError(
        f"{path}: the network found in it does not compute what its graph computes; they differ "
        f"first at {endpoint!r}, {by}. An activation or an option of a layer is another."
    )
