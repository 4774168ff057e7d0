"""Computes a model's graph and the network that was found in it on the same pictures.

Where activations are and what an operation's options mean is not read from a graph: a network that
computes the same numbers has them in the same places.
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
    graph: "onnx.ModelProto",
    endpoints: dict[str, str],
    path: str,
) -> None:
    """Raises UserError unless a network computes what a graph computes, on two random pictures.

    Args:
      model: the network.
      variables: {"params", "batch_stats"}.
      order: of the colours in the graph's input, "RGB" or "BGR"; the network takes RGB.
      graph: the model.
      endpoints: endpoint, such as "stage1" or "logits" -> the graph's activation, (N, C, H, W) or
        (N, classes), before the ReLU if a stage ends with one.
      path: of the file, for messages.
    """
    from onnx.reference import ReferenceEvaluator

    variables = {key: variables[key] for key in ("params", "batch_stats") if key in variables}
    channels = variables["params"]["stem_conv1" if model.stem == "deep" else "stem_conv"][
        "kernel"
    ].shape[2]
    name, shape, is_last = _input(graph, channels, 32 if STEMS[model.stem] == 1 else 224)
    draw = np.random.default_rng(0)
    compute = jax.jit(lambda v, images_BHWC: features(model, v, images_BHWC, [*endpoints]))
    for scale in _SCALES:
        images_BHWC = draw.normal(0, scale, shape).astype(np.float32)
        theirs_BHWC = images_BHWC[..., ::-1] if order == "BGR" else images_BHWC
        given = theirs_BHWC if is_last else theirs_BHWC.transpose(0, 3, 1, 2)
        try:
            computed = ReferenceEvaluator(graph).run(None, {name: given}, intermediate=True)
        except Exception as e:  # an evaluator of any operation raises errors of any type
            raise UserError(f"{path}: its graph cannot be computed ({reason(e)}).") from e
        ours = compute(variables, images_BHWC)
        for endpoint, activation in endpoints.items():
            _compare(endpoint, np.asarray(ours[endpoint]), computed[activation], path)


def _input(
    graph: "onnx.ModelProto", channels: int, side: int
) -> tuple[str, tuple[int, int, int, int], bool]:
    """Returns the input's name, the shape (1, H, W, C), and whether its channels are last."""
    constants = {each.name for each in graph.graph.initializer}
    (given,) = [each for each in graph.graph.input if each.name not in constants]
    sides = [each.dim_value for each in given.type.tensor_type.shape.dim][1:]
    is_last = len(sides) == 3 and sides[0] != channels and sides[2] == channels
    height, width = sides[:2] if is_last else sides[1:]
    return given.name, (1, height or side, width or side, channels), is_last


def _compare(endpoint: str, ours: np.ndarray, theirs: Any, path: str) -> None:
    limit = _LIMIT if theirs.dtype == np.float32 else _HALF_LIMIT
    if theirs.ndim == 4:
        theirs = np.maximum(theirs.transpose(0, 2, 3, 1), 0)
    wanted = np.asarray(theirs, np.float32)
    is_equal = wanted.shape == ours.shape
    if is_equal:
        error = np.abs(ours - wanted).max() / max(np.abs(wanted).max(), np.float32(1e-30))
        is_equal = bool(error <= limit)  # not NaN
    if not is_equal:
        by = f"by {error:.2g} of its largest number" if wanted.shape == ours.shape else (
            f"which is of {wanted.shape} there and of {ours.shape} here"
        )  # fmt: skip
        raise UserError(
            f"{path}: the network of these layers computes something else than the file's graph; "
            f"they differ first at {endpoint!r}, {by}. Activations or options of layers are others."
        )
