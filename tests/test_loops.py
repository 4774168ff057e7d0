"""The estimate of what loops over blocks save and cost is that of the recorded measurements."""

import json
import pathlib
import types

import numpy as np
import pytest

from benchmarks.peers import ours
from resnet_jax import loops
from resnet_jax.execution import on_mesh
from resnet_jax.parallel.chips import CHIPS

RESULTS = pathlib.Path(__file__).parents[1] / "results"
KINDS = {"gpu": "NVIDIA H200", "tpu": "TPU v5 lite"}
CHIP = {"gpu": "h200", "tpu": "v5e"}


def mesh_of(platform, kind=None, size=1):
    device = types.SimpleNamespace(platform=platform, device_kind=kind or KINDS.get(platform))
    return types.SimpleNamespace(
        devices=np.array([device]), size=size, shape={"replicates": 1, "data": size, "fsdp": 1}
    )


def config(depth=56, family="cifar", steps=64_000, **changes):
    made = ours.config(family, depth, dtype="bfloat16", **changes)
    made.steps = steps
    return made


@pytest.mark.parametrize(
    ("platform", "family"), [("gpu", "cifar"), ("gpu", "imagenet"), ("tpu", "cifar")]
)
def test_the_estimate_is_close_to_what_was_measured(platform, family):
    table = RESULTS / f"compile_{CHIP[platform]}" / family / "table.json"
    recorded = json.loads(table.read_text(encoding="utf-8"))
    assert recorded["device"].endswith(KINDS[platform])
    pairs = {}
    for row in recorded["rows"]:
        pairs.setdefault((row["family"], row["depth"]), {})[row["blocks"]] = row
    compared = 0
    for (family, depth), ways in pairs.items():
        loop, unrolled = ways["loop"], ways["unrolled"]
        made = config(depth, family, batch_size=recorded["batch_size"])
        estimate = loops.estimate(made, mesh_of(platform), 1)
        seconds = [np.median(np.add(way["trace"], way["compile"])) for way in (unrolled, loop)]
        slack = {"gpu": 3, "tpu": 8}[platform]
        assert estimate.compile_seconds == pytest.approx(
            seconds[0] - seconds[1], rel=0.3, abs=slack
        )
        bandwidth = CHIPS[KINDS[platform]].bandwidth * 1e9
        saved = (loop["moved_bytes"] - unrolled["moved_bytes"]) / bandwidth
        assert saved / 2.5 <= estimate.step_seconds <= 1.5 * saved
        compared += 1
    assert compared > 2


def test_long_runs_are_unrolled_and_short_ones_are_not():
    estimate = loops.estimate(config(), mesh_of("gpu"), 1)
    assert estimate.compile_seconds > 1
    assert estimate.step_seconds > 0
    enough = estimate.compile_seconds / estimate.step_seconds
    for steps, is_looped in ((int(enough * 0.99), True), (int(enough * 1.01) + 1, False)):
        execution = on_mesh(config(steps=steps), mesh_of("gpu"))
        assert execution.scan == is_looped
        assert execution.loops == estimate
        assert execution.facts()["loops"] == {
            "convolutions": 48,
            "compile_seconds": estimate.compile_seconds,
            "step_seconds": estimate.step_seconds,
        }


def test_few_blocks_are_unrolled_however_short_the_run():
    assert not on_mesh(config(depth=20, steps=1), mesh_of("tpu")).scan


def test_networks_deeper_than_measured_have_loops_however_long_the_run():
    assert not on_mesh(config(depth=218, steps=10**9), mesh_of("gpu")).scan
    assert on_mesh(config(depth=224, steps=10**9), mesh_of("gpu")).scan


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_on_and_off_are_kept(platform):
    for scan in ("on", "off"):
        assert on_mesh(config(scan=scan, steps=1), mesh_of(platform)).scan == (scan == "on")
    if platform == "cpu":
        execution = on_mesh(config(depth=1202, steps=1), mesh_of(platform))
        assert not execution.scan
        assert execution.loops is None


def test_what_a_step_costs_follows_from_the_run():
    def cost(platform="gpu", kind=None, size=1, **changes):
        return loops.estimate(config(**changes), mesh_of(platform, kind, size), 1).step_seconds

    usual = cost()
    assert cost(batch_size=256) == pytest.approx(2 * usual)
    assert cost(replicates=3) == pytest.approx(3 * usual)
    assert cost(size=4) == pytest.approx(usual / 4)
    assert cost(kind="NVIDIA H100 80GB HBM3") == pytest.approx(usual * 4800 / 3350)
    assert cost(kind="unknown") == pytest.approx(usual)  # an H200 is the fastest
    assert cost(remat=(1, 2, 3)) == pytest.approx(usual / 3)  # a block's input alone
    assert cost(remat=(3,)) == pytest.approx(usual * (4 + 2 + 1 / 3) / 7)
    # 8 looped blocks per stage, each with an input and two outputs, 128 images, bfloat16.
    elements = 8 * 3 * (32**2 * 16 + 16**2 * 32 + 8**2 * 64)
    assert usual == pytest.approx(elements * 128 * 2 * loops.COSTS["gpu"].copied / 4.8e12)


def test_what_loops_save_to_compile_follows_from_the_program():
    one, three = (loops.estimate(config(), mesh_of("gpu"), seeds) for seeds in (1, 3))
    assert three.compile_seconds == pytest.approx(3 * one.compile_seconds)
    by_loop = config(replicates=3)
    by_loop.replicates_by = "loop"
    assert on_mesh(by_loop, mesh_of("gpu")).loops.compile_seconds == one.compile_seconds
