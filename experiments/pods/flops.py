"""Counts the floating-point operations of convolutions and products in a traced program.

A multiplication and an addition are two operations. Zeros that a gradient inserts between elements
(a convolution with a stride, transposed) are not counted, zeros of padding are: the paper's
mult-adds count them as well. What is computed again (model.remat) counts.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval


def of_jaxpr(jaxpr: Jaxpr) -> int:
    """Returns the operations of a program on all its devices together.

    Results that nothing uses do not count, as the compiler removes what computes them.

    Raises:
      ValueError: a loop without a fixed number of iterations computes products.
    """
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_used(used)


def _of_used(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    (output, *_), inputs = equation.outvars or [None], equation.invars
    if name == "conv_general_dilated":
        kernel, numbers = inputs[1].aval.shape, parameters["dimension_numbers"]
        _, features, *spatial = numbers.rhs_spec
        taps = math.prod(kernel[axis] for axis in spatial)
        operations = 2 * output.aval.size * taps * kernel[features]
        return operations // math.prod(parameters["lhs_dilation"])
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * output.aval.size * math.prod(inputs[0].aval.shape[i] for i in contracted)
    inner = [_of_used(each) for each in _inside(parameters)]
    if name == "scan":
        return parameters["length"] * sum(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop computes products, and its iterations are unknown")
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        # The name of this parameter depends on JAX's version.
        (axes,) = (value for key, value in parameters.items() if key.endswith("manual_axes"))
        return math.prod(parameters["mesh"].shape[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _inside(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs among an equation's parameters."""
    for value in parameters.values():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each
