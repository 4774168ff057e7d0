"""Kernels of a program written by hand, and of compiled programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compiled import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%write_one (p.0: f32[3,10], p.1: f32[10], p.2: s32[]) -> (f32[10], f32[3,10]) {
  %p.1 = f32[10]{0} parameter(1)
  %sine = f32[10]{0} sine(%p.1), metadata={op_name="jit(step)/sin"}
  %p.0 = f32[3,10]{1,0} parameter(0)
  %row = f32[1,10]{1,0} bitcast(%sine)
  %p.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %stacked = f32[3,10]{1,0} dynamic-update-slice(%p.0, %row, %p.2, %zero)
  %again = f32[3,10]{1,0} bitcast(%stacked)
  ROOT %both = (f32[10]{0}, f32[3,10]{1,0}) tuple(%sine, %again)
}

%first_row (p.3: f32[3,10]) -> bf16[1,10] {
  %p.3 = f32[3,10]{1,0} parameter(0)
  %half = bf16[3,10]{1,0} convert(%p.3)
  ROOT %slice.1 = bf16[1,10]{1,0} slice(%half), slice={[0:1], [0:10]}
}

%body (state: (s32[], f32[10], f32[3,10])) -> (s32[], f32[10], f32[3,10]) {
  %state = (s32[], f32[10]{0}, f32[3,10]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x.1 = f32[10]{0} get-tuple-element(%state), index=1
  %rows = f32[3,10]{1,0} get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %fusion.1 = (f32[10]{0}, f32[3,10]{1,0}) fusion(%rows, %x.1, %i), kind=kLoop, calls=%write_one, \
metadata={op_name="jit(step)/while/body/sin"}
  %sines = f32[10]{0} get-tuple-element(%fusion.1), index=0
  %all = f32[3,10]{1,0} get-tuple-element(%fusion.1), index=1
  ROOT %result = (s32[], f32[10]{0}, f32[3,10]{1,0}) tuple(%next, %sines, %all)
}

%below (state.1: (s32[], f32[10], f32[3,10])) -> pred[] {
  %state.1 = (s32[], f32[10]{0}, f32[3,10]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (x: f32[10], mask: pred[7]) -> (bf16[1,10], (f32[2,5], u8[0])) {
  %x = f32[10]{0} parameter(0)
  %mask = pred[7]{0} parameter(1)
  %start = s32[] constant(0)
  %none = f32[3,10]{1,0} broadcast(%x), dimensions={1}
  %before = (s32[], f32[10]{0}, f32[3,10]{1,0}) tuple(%start, %x, %none)
  %loop = (s32[], f32[10]{0}, f32[3,10]{1,0}) while(%before), condition=%below, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %kept = f32[3,10]{1,0} get-tuple-element(%loop), index=2
  %fusion.2 = bf16[1,10]{1,0} fusion(%kept), kind=kLoop, calls=%first_row
  %conv = (f32[2,5]{1,0}, u8[0]{0}) custom-call(%x, %mask), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/conv (3x3)"}
  %last = f32[10]{0} get-tuple-element(%loop), index=1
  %updated = f32[3,10]{1,0} dynamic-update-slice(%kept, %last, %start, %start)
  ROOT %out = (bf16[1,10]{1,0}, (f32[2,5]{1,0}, u8[0]{0})) tuple(%fusion.2, %conv)
}
"""


def test_by_hand():
    found = {kernel.name: kernel for kernel in hlo.kernels(PROGRAM)}
    assert {name: (kernel.size, kernel.times) for name, kernel in found.items()} == {
        "none": (4 * (10 + 30), 1),
        "next": (3 * 4, 3),
        # Reads x and the index; writes the sines, once more into the stack.
        "fusion.1": (4 * (10 + 1 + 10 + 10), 3),
        "fusion.2": (2 * 10 + 2 * 10, 1),  # only the slice is read
        "conv": (40 + 7 + 40, 1),
        "updated": (2 * 40, 1),
    }
    assert found["fusion.1"].total == 3 * found["fusion.1"].size
    assert found["fusion.1"].source == "jit(step)/while/body/sin"
    assert found["conv"].opcode == "__cudnn$convForward"
    assert found["conv"].source == "jit(step)/conv (3x3)"
    assert found["fusion.2"].opcode == "fusion"
    assert list(found) == ["none", "next", "fusion.1", "fusion.2", "conv", "updated"]


def test_a_loop_without_a_trip_count_is_refused():
    with pytest.raises(ValueError, match="the loop loop has no known trip count"):
        hlo.kernels(PROGRAM.replace("known_trip_count", "unknown"))


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return hlo.kernels(jax.jit(function).lower(*arguments).compile().as_text())


def test_an_elementwise_function_reads_and_writes_once():
    found = compiled(lambda x, y: jnp.sin(x) * y + 1, ((50, 40), jnp.float32), ((), jnp.float32))
    assert sum(kernel.total for kernel in found) == 4 * (2 * 2000 + 1)


def test_a_compiled_loop_moves_only_slices():
    def double(xs):
        return jax.lax.scan(lambda total, x: (total + x, jnp.tanh(x)), jnp.zeros(1000), xs)

    found = compiled(double, ((64, 1000), jnp.float32))
    large = [kernel for kernel in found if kernel.size >= 4000 and kernel.times > 1]
    assert {kernel.times for kernel in large} == {64}
    # A row of xs and the sum are read, the sum and a row are written; the row may be read twice.
    assert 4 * 4000 <= sum(kernel.size for kernel in large) < 4 * 6100


def test_a_matrix_product_reads_its_factors():
    (product,) = [
        kernel
        for kernel in compiled(jnp.dot, ((256, 128), jnp.float32), ((128, 64), jnp.float32))
        if kernel.size > 4 * 256
    ]
    assert product.size == 4 * (256 * 128 + 128 * 64 + 256 * 64)
    assert product.source.endswith("dot_general")
