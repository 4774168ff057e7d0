"""Collectives of a program written by hand, in every form in which XLA names groups."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from experiments.pods import collectives, hlo

AXES = ("replicates", "data", "fsdp")


def mesh(*shape):
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def read(lines, *shape):
    text = "\n".join(
        ["ENTRY %main (x: f32[8], y: bf16[6]) -> f32[8] {", "  %x = f32[8]{0} parameter(0)",
         "  %y = bf16[6]{0} parameter(1)", *(f"  {line}" for line in lines), "}"]
    )  # fmt: skip
    return collectives.of_program(hlo.parse(text), mesh(*shape))


def of(groups, *shape):
    (found,) = read([f"ROOT %a = f32[8]{{0}} all-reduce(%x), {groups}, to_apply=%add"], *shape)
    return found


@pytest.mark.parametrize(
    "groups",
    [
        "replica_groups={{0,1},{2,3}}",
        "replica_groups={{1,0},{3,2}}",
        "replica_groups=[2,2]<=[4]",
        "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, use_global_device_ids=true",
        "replica_groups=mesh['a'=2,'b'=1,'c'=2] {'b','c'}",
    ],
)
def test_groups_of_neighbours(groups):
    assert of(groups, 2, 2, 1).axes == ("data",)
    assert of(groups, 2, 1, 2).axes == ("fsdp",)
    assert of(groups, 1, 4, 1).axes == ("groups of 2",)
    assert of(groups, 2, 2, 1).chips == 2


@pytest.mark.parametrize(
    "groups",
    [
        "replica_groups={{0,2},{1,3}}",
        "replica_groups=[2,2]<=[2,2]T(1,0)",
        "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}",
    ],
)
def test_groups_across(groups):
    assert of(groups, 2, 2, 1).axes == ("replicates",)
    assert of(groups, 1, 2, 2).axes == ("data",)


@pytest.mark.parametrize("groups", ["replica_groups={}", "replica_groups={{0,1,2,3,4,5,6,7}}"])
def test_all_chips(groups):
    assert of(groups, 2, 2, 2).axes == AXES
    assert of(groups, 1, 4, 2).axes == ("data", "fsdp")


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="the groups of a are in an unknown form: , replica_gr"):
        of("replica_groups=<odd>", 1, 4, 1)


def test_groups_of_one_chip_send_nothing():
    assert not read(
        ["ROOT %a = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add"], 2, 1, 1
    )


def test_those_of_one_channel_all_count():
    line = "%{} = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%a"
    found = read([line.format("p"), line.format("q")], 1, 2, 1)
    assert [each.size for each in found] == [32, 32]


def test_bytes_of_each_kind():
    found = read(
        [
            "%r = (f32[8]{0}, bf16[6]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3}}, "
            'to_apply=%add, metadata={op_name="jit(step)/sum"}',
            "%g = f32[32]{0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
            "%s = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add",
            "%t = f32[8]{0} all-to-all(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
            "ROOT %p = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{2,3}}",
        ],
        1, 4, 1,
    )  # fmt: skip
    assert [(each.kind, each.sizes, each.sent) for each in found] == [
        ("all-reduce", {"f32": 32, "bf16": 12}, 2 * 3 / 4 * 44),  # a part at a time, there and back
        ("all-gather", {"f32": 128}, 3 / 4 * 128),
        ("reduce-scatter", {"f32": 32}, 3 / 4 * 32),
        ("all-to-all", {"f32": 32}, 3 / 4 * 32),
        ("collective-permute", {"f32": 32}, 32),
    ]
    assert found[0].source == "jit(step)/sum"
    assert found[0].size == 44


START = (
    "%s = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%add",
    "%d = f32[8]{0} all-reduce-done(%s)",
)
GATHER = (
    "%s = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}",
    "%d = f32[16]{0} all-gather-done(%s)",
)


@pytest.mark.parametrize("pair", [START, GATHER])
def test_an_asynchronous_one_is_overlapped_if_work_is_scheduled_before_it_is_done(pair):
    start, done = pair
    idle = "%b = f32[8]{0} bitcast(%x)"
    work = "%m = f32[8]{0} multiply(%x, %x)"
    (alone,) = read([start, idle, done, work], 1, 2, 1)
    (hidden,) = read([start, work, done], 1, 2, 1)
    assert (alone.is_overlapped, hidden.is_overlapped) == (False, True)
    assert hidden.kind == start.split("-start")[0].split()[-1]
    assert hidden.size == (64 if pair is GATHER else 32)


FUSED = """\
%piece (p.0: f32[8]) -> (f32[8], f32[16]) {
  %p.0 = f32[8]{0} parameter(0)
  %g.0 = f32[16]{0} all-gather(%p.0), channel_id=7, replica_groups={{0,1}}, dimensions={0}, \
frontend_attributes={chain_id="3"}
  ROOT %out.0 = (f32[8]{0}, f32[16]{0}) tuple(%p.0, %g.0)
}

%work (p.1: f32[8], p.2: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %p.2 = f32[8]{0} parameter(1)
  %g.1 = f32[16]{0} all-gather(%p.1), channel_id=7, replica_groups={{0,1}}, dimensions={0}, \
frontend_attributes={chain_id="3"}
  ROOT %sum = f32[8]{0} add(%p.1, %p.2)
}

%end (p.3: f32[8]) -> f32[16] {
  %p.3 = f32[8]{0} parameter(0)
  ROOT %g.2 = f32[16]{0} all-gather(%p.3), channel_id=7, replica_groups={{0,1}}, dimensions={0}, \
frontend_attributes={chain_id="3"}
}

ENTRY %main (x: f32[8]) -> f32[16] {
  %x = f32[8]{0} parameter(0)
  %async-collective-start = (f32[8]{0}, f32[16]{0}) fusion(%x), kind=kCustom, calls=%piece
  %fusion.1 = f32[8]{0} fusion(%x, %x), kind=kOutput, calls=%work
  ROOT %async-collective-done = f32[16]{0} fusion(%x), kind=kCustom, calls=%end
}
"""


def test_one_that_is_fused_with_other_work_in_pieces_counts_once_and_is_overlapped():
    (found,) = collectives.of_program(hlo.parse(FUSED), mesh(1, 2, 1))
    assert (found.kind, found.sizes, found.times) == ("all-gather", {"f32": 64}, 1)
    assert found.is_overlapped
    alone = FUSED.replace("  %g.1 =", "  %n.1 =").replace("all-gather(%p.1)", "negate(%p.1)")
    (found,) = collectives.of_program(hlo.parse(alone), mesh(1, 2, 1))
    assert not found.is_overlapped
