"""Kernels of a program written by hand, and of compiled programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest

from experiments.pods import kernels

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
    found = {kernel.name: kernel for kernel in kernels.of_text(PROGRAM)}
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


def test_a_trip_count_that_is_not_noted_is_that_of_the_counter():
    unknown = PROGRAM.replace("known_trip_count", "unknown")
    assert kernels.of_text(unknown) == kernels.of_text(PROGRAM)
    copied = unknown.replace("tuple(%start,", "tuple(%copied,").replace(
        "  %none =", "  %copied = s32[] copy(%start)\n  %none ="
    )
    assert [k for k in kernels.of_text(copied) if k.name != "copied"] == kernels.of_text(PROGRAM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=LE"),
        ("%start = s32[] constant(0)", "%start = s32[] constant(1)"),
        ("%start = s32[] constant(0)", "%start = s32[] parameter(2)"),
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)"),
        ("%next = s32[] add(", "%next = s32[] multiply("),
        ("%three = s32[] constant(3)", "%three = s32[] parameter(1)"),
    ],
)
def test_a_loop_whose_iterations_cannot_be_told_is_refused(old, new):
    text = PROGRAM.replace("known_trip_count", "unknown")
    assert text.count(old) == 1
    with pytest.raises(ValueError, match="iterations of the loop loop cannot be told"):
        kernels.of_text(text.replace(old, new))


ON_A_TPU = """\
HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[300,3], p.1: s32[4]) -> bf16[4,3] {
  %p.0 = bf16[300,3]{0,1:T(4,128)(2,1)} parameter(0)
  %p.1 = s32[4]{0:T(128)S(1)} parameter(1)
  ROOT %rows = bf16[4,3]{0,1:T(4,128)(2,1)} gather(%p.0, %p.1), offset_dims={1}
}

ENTRY %main (x: f32[20,3], table: bf16[300,3]) -> bf16[4,3] {
  %x = f32[20,3]{1,0:T(8,128)} parameter(0)
  %table = bf16[300,3]{0,1:T(4,128)(2,1)} parameter(1)
  %copy-start = (f32[20,3]{1,0:T(8,128)S(1)}, f32[20,3]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x)
  %copy-done = f32[20,3]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[20,3]{1,0:T(8,128)}), f32[8,3]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[0:8], [0:3]}
  %slice-done = f32[8,3]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %sum = f32[20,3]{1,0:T(8,128)S(1)} add(%copy-done, %copy-done)
  %space = f32[8]{0:T(128)} custom-call(), custom_call_target="AllocateBuffer"
  %ids = s32[4]{0:T(128)S(1)} custom-call(), custom_call_target="Numbers"
  ROOT %out = bf16[4,3]{0,1:T(4,128)(2,1)} fusion(%table, %ids), kind=kLoop, calls=%fused
}
"""


def test_of_a_tpu_whole_tiles_are_moved_and_nothing_that_stays_on_the_chip():
    found = {kernel.name: kernel.size for kernel in kernels.of_text(ON_A_TPU)}
    assert found == {
        "copy-start": 4 * 24 * 128,  # rows in eights, columns in 128s; the copy stays on the chip
        "slice-start": 4 * 8 * 128,
        "sum": 0,
        "ids": 0,
        # Only the rows are read: their axis is the contiguous one, padded from 4 to 128.
        "out": 2 * (2 * 4 * 128),
    }


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return kernels.of_text(jax.jit(function).lower(*arguments).compile().as_text())


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
