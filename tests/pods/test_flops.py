"""Operations of known programs, and of training steps beside the paper's mult-adds."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.peers import ours
from experiments.pods import flops, program
from resnet_jax.data import sets
from resnet_jax.networks import summary


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def convolve(x, kernel, stride=1, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), **options,
    )  # fmt: skip


X, KERNEL = (2, 8, 8, 6), (3, 3, 6, 10)
FORWARD = 2 * (2 * 8 * 8 * 10) * (3 * 3 * 6)


def test_a_product_and_a_convolution():
    assert count(jnp.dot, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert count(jnp.vdot, (4, 7), (4, 7)) == 2 * 28
    assert count(jax.vmap(jnp.dot), (9, 5, 7), (9, 7, 3)) == 9 * 2 * 5 * 7 * 3
    assert count(convolve, X, KERNEL) == FORWARD
    grouped = lambda x, k: convolve(x, k, feature_group_count=2)  # noqa: E731 - a one-line function
    assert count(grouped, X, (3, 3, 3, 10)) == FORWARD // 2


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_costs_as_much_as_its_forward_pass(stride):
    forward = FORWARD // stride**2

    def loss(x, kernel):
        return convolve(x, kernel, stride).sum()

    assert count(jax.value_and_grad(loss), X, KERNEL) == 2 * forward
    assert count(jax.value_and_grad(loss, (0, 1)), X, KERNEL) == 3 * forward


def test_loops_branches_and_what_is_computed_again():
    square = lambda a: a @ a  # noqa: E731 - a one-line function
    one = 2 * 5**3
    assert count(lambda a: jax.lax.fori_loop(0, 4, lambda _, b: square(b), a), (5, 5)) == 4 * one
    assert count(lambda a: jax.lax.cond(a[0, 0] > 0, square, lambda b: b, a), (5, 5)) == one
    assert count(lambda a: jax.jit(square)(square(a)), (5, 5)) == 2 * one
    again = jax.checkpoint(lambda a: square(square(a)))
    assert count(jax.value_and_grad(lambda a: again(a).sum()), (5, 5)) == (2 + 1 + 4) * one
    with pytest.raises(ValueError, match="iterations are unknown"):
        count(lambda a: jax.lax.while_loop(lambda b: b[0, 0] < 0, square, a), (5, 5))


def test_all_devices_count():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert count(each, (16, 5)) == 8 * (2 * 2 * 5 * 2)


VARIANTS = {
    "groups": 4, "bottleneck_width": 2.0, "se_reduction": 16, "stem": "deep",
    "shortcut_downsampling": "mean",
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "depth", "seeds", "how", "devices", "variants"),
    [
        ("cifar", 20, 1, "auto", 1, {}),
        ("cifar", 20, 2, "unroll", 1, {}),
        ("cifar", 20, 2, "separate", 1, {}),
        ("cifar", 20, 1, "auto", 4, {}),  # the devices' kernel gradients are summed in float32
        ("cifar", 20, 4, "separate", 4, {}),
        ("imagenet", 50, 1, "auto", 1, {}),
        ("cifar_bottleneck", 11, 2, "separate", 1, VARIANTS),
        ("cifar_bottleneck", 11, 1, "auto", 4, VARIANTS),
    ],
)
def test_a_training_step_is_three_forward_passes_without_the_gradient_of_the_images(
    family, depth, seeds, how, devices, variants
):
    config = ours.config(
        family.split("_")[0], 20 if variants else depth,
        batch_size=8, replicates=seeds, dtype="bfloat16", bn_group=0,
    )  # fmt: skip
    config.model.update({"family": family, "depth": depth} | variants)
    config.replicates_by = how
    programs, arguments = program.shapes(config, jax.devices()[:devices])
    found = flops.of_jaxpr(programs.train_steps.trace(programs.state, *arguments).jaxpr.jaxpr)
    network = summary.summarize(programs.model, sets.image_shape(config.data))
    first = network.layers[0].mult_adds
    if variants:  # the deep stem's first convolution: 3 x 3 x 3 to 8 filters at 16 x 16 positions
        first = 16 * 16 * 27 * 8
    assert found == seeds * 8 * 2 * (3 * network.mult_adds - first)
