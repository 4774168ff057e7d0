"""The bounds of a step from numbers that are easily divided."""

import dataclasses

import jax
import pytest

from experiments.pods import bound, target
from experiments.pods.collectives import Collective
from experiments.pods.program import Needs
from resnet_jax.parallel import mesh as meshes

SUM = Collective("all-reduce", {"f32": 4_000_000}, ("data",), 4, 1, False, "sum")


def needs(*collectives, flops=197e9, moved=8.19e8, steps=1):
    mesh = meshes.make_mesh(devices=jax.devices()[:4])
    return Needs(mesh, steps, 32, 10**9, 10**8, flops, moved, collectives)


def of(text, *collectives, dtype="bfloat16", **numbers):
    return bound.of_step(needs(*collectives, **numbers), target.parse(text), dtype)


def test_the_slowest_resource_sets_the_bound():
    alone = of("v5e:2x2")
    assert (alone.matrix, alone.memory, alone.links) == pytest.approx((1e-3, 1e-3, 0))
    assert alone.step == pytest.approx(1e-3)
    assert of("v5e:2x2", flops=2 * 197e9).resource == "matrix unit"
    assert of("v5e:2x2", flops=2 * 197e9).step == pytest.approx(2e-3)
    assert of("v5e:2x2", moved=3 * 8.19e8).resource == "memory"
    assert of("v5e:2x2", moved=3 * 8.19e8).step == pytest.approx(3e-3)


def test_what_is_not_overlapped_comes_on_top():
    # 2 x 3/4 of 4 MB, over two links of 50 GB/s.
    exposed = of("v5e:2x2", SUM)
    assert exposed.links == exposed.exposed == pytest.approx(6e-5)
    assert exposed.step == pytest.approx(1e-3 + 6e-5)
    hidden = of("v5e:2x2", dataclasses.replace(SUM, is_overlapped=True))
    assert (hidden.links, hidden.exposed) == (pytest.approx(6e-5), 0)
    assert hidden.step == pytest.approx(1e-3)
    slow = of("v5e:2x2", dataclasses.replace(SUM, is_overlapped=True, times=100))
    assert (slow.resource, slow.step) == ("links", pytest.approx(6e-3))


def test_a_program_of_several_steps_is_divided_by_them():
    assert of("v5e:2x2", dataclasses.replace(SUM, times=5), steps=5).links == pytest.approx(6e-5)


def test_a_device_of_a_v4_is_half_a_chip_with_all_of_its_links():
    whole = of("v4:2x2x1", flops=275e9, moved=1.228e9)
    assert (whole.matrix, whole.memory) == pytest.approx((2e-3, 2e-3))
    assert of("v4:2x2x1", SUM).links == pytest.approx(2 * 3 / 4 * 4e6 / (300e9 * 2 / 6))


def test_float32_products_take_a_gpus_tensorfloat_and_a_tpus_only_peak():
    assert of("H100:8", dtype="float32").matrix == 2 * of("H100:8").matrix
    assert of("v5e:2x2", dtype="float32").matrix == of("v5e:2x2").matrix


@pytest.mark.parametrize(
    ("text", "links"),
    [("v5e:2x2", 2), ("v5e:4x4", 2), ("v5e:16x16", 4), ("v5e:8x16", 3), ("v4:2x2x1", 2),
     ("v4:2x2x2", 3), ("v4:4x4x4", 6), ("v5p:4x4x8", 6), ("v6e:16x16", 4)],
)  # fmt: skip
def test_links_of_a_corner(text, links):
    assert bound.usable_links(target.parse(text)) == links


def test_gpus_of_several_hosts_send_their_share_over_the_network():
    inside = dataclasses.replace(SUM, chips=8)
    assert of("H100:8", inside).links == pytest.approx(2 * 7 / 8 * 4e6 / 450e9)
    # Within a host the others are not involved.
    assert of("H100:4x8", inside).links == of("H100:8", inside).links
    # Each host sends 2 x 3/4 of 4 MB, each of its GPUs an eighth of that at 50 GB/s.
    across = dataclasses.replace(SUM, chips=32)
    assert of("H100:4x8", across).links == pytest.approx(
        max(2 * 31 / 32 * 4e6 / 450e9, 2 * 3 / 4 * 4e6 / 8 / 50e9)
    )
