"""The traffic benchmark runs, for this machine and for absent chips."""

import importlib.util
import json

import pytest

from tests import tiny


def launch(*flags):
    return tiny.program("benchmarks.traffic", *flags)


def rows_of(folder):
    return {row["program"]: row for row in json.loads((folder / "table.json").read_text())["rows"]}


@pytest.mark.slow
def test_it_reads_every_program(tmp_path):
    done = launch(
        "--depths=20", "--batch_size=4", "--dtype=float32", "--kernels=2", f"--out={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path)
    assert list(rows) == ["loop", "unrolled", "flax"]
    for row in rows.values():
        assert (row["family"], row["depth"], row["steps_at_once"]) == ("cifar", 20, 1)
        # 19 convolutions and their two gradients, except the gradient w.r.t. the image.
        assert row["kernels_a_step"] > 3 * 19 - 1
        assert 1e6 < row["convolutions_bytes_a_step"] < row["bytes_a_step"]
        assert row["over_the_last"] == row["bytes_a_step"] / rows["flax"]["bytes_a_step"]
        table = json.loads((tmp_path / "table.json").read_text())
        bandwidth = float(table["bound"].split()[1])
        assert row["bound_seconds"] == pytest.approx(row["bytes_a_step"] / bandwidth / 1e9, 1e-3)
    # A loop stacks its residuals.
    assert rows["loop"]["bytes_a_step"] > 1.1 * rows["unrolled"]["bytes_a_step"]
    assert (tmp_path / "table.txt").read_text() in done.stdout
    assert done.stdout.count(" MB ") == 2 * 3


@pytest.mark.slow
def test_it_reads_several_seeds_beside_one(tmp_path):
    flags = ("--depths=8", "--batch_size=4", "--dtype=float32", "--seeds=2", f"--out={tmp_path}")
    ways = ("separate", "unroll", "loop")
    done = launch(*flags, "--program=unrolled", "--program=flax", *(f"--how={way}" for way in ways))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["program"], row["seeds"], row["computed_by"]) for row in rows] == [
        *(("unrolled", 2, way) for way in ways), ("unrolled", 1, "alone")
    ]  # fmt: skip
    assert rows[-1]["over_the_last"] == 1
    by_way = {row["computed_by"]: row for row in rows}
    for way in ways:
        # The bytes of two single seeds; a loop also copies their states.
        assert 1.8 < by_way[way]["over_the_last"] < 3
    kernels = {how: row["kernels_a_step"] for how, row in by_way.items()}
    assert kernels["separate"] < 1.8 * kernels["alone"] < kernels["unroll"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--depths=20,x", "error: --depths has 'x'; allowed are whole numbers from 1 up."),
        ("--program=lop", "--program=lop: value should be one of <loop|unrolled|flax>"),
        (
            "--target=h200",
            "--target=h200 is not a chip; allowed are H100, H200, v4, v5e, v5p or v6e",
        ),
        ("--batch_size=0", "batch_size"),
        ("--seeds=0", "seeds"),
        ("--seeds=2 --program=flax", "error: --program=flax does not support --seeds=2; allowed"),
        ("--seeds=2 --how=vmp", "--how=vmp: value should be one of <separate|unroll|"),
    ],
)
def test_mistakes_are_one_sentence(flag, words):
    done = launch(*flag.split())
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def has(package):
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [("H200", "jax_cuda13_plugin", "cuda13"), ("v5e", "libtpu", "tpu")],
)
def test_a_compiler_that_is_not_installed_is_one_sentence(target, package, extra):
    if has(package):
        pytest.skip(f"{package} is installed")
    done = launch(f"--target={target}")
    assert done.returncode == 2
    assert f"error: --target={target} needs that chip's compiler" in done.stderr
    assert f"pip install 'jax[{extra}]==" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not has("jax_cuda13_plugin"), reason="jax[cuda13] is not installed")
def test_it_reads_the_program_of_an_absent_gpu(tmp_path):
    flags = ("--target=H200", "--depths=20", "--program=unrolled", f"--out={tmp_path}")
    done = launch(*flags, "--kernels=1000")
    assert done.returncode == 0, done.stderr
    # Each is a call of cuDNN.
    assert done.stdout.count(" __cudnn$conv") == 3 * 19 - 1
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["device"] == "gpu: NVIDIA H200"
    assert table["bound"] == "at 4800 GB/s, from the maker"
    assert rows_of(tmp_path)["unrolled"]["steps_at_once"] == 25


@pytest.mark.slow
@pytest.mark.skipif(not has("jax_cuda13_plugin"), reason="jax[cuda13] is not installed")
def test_on_a_gpu_no_convolution_sees_two_seeds():
    flags = ("--target=H200", "--depths=8", "--program=unrolled", "--seeds=2", "--kernels=1000")
    done = launch(*flags, "--how=separate")
    assert done.returncode == 0, done.stderr
    # Seven per seed, then those of the single seed in the last row.
    assert done.stdout.count(" __cudnn$convBackwardFilter") == 2 * 7 + 7


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(not has("libtpu"), reason="jax[tpu] is not installed")
def test_a_tpus_program_is_refused():
    done = launch("--target=v5e", "--depths=20")
    assert done.returncode == 2
    assert "error: --target=v5e is a TPU" in done.stderr
