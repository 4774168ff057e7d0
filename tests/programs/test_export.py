"""From a run folder to files that other programs read, and back."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import onnx
import pytest
import safetensors
from onnx.reference import ReferenceEvaluator

import resnet_jax
from resnet_jax.data import sources
from resnet_jax.interop import facts
from resnet_jax.runs import reader
from tests import tiny
from tests.interop import foreign

ERROR = 12.345678


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a mean per pixel, which was tested on data with a caveat."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    foreign.write_run(folder, same_padding=("blocks",), bn_group=16)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "test/error": ERROR}) + "\n")
    environment = json.loads((folder / "environment.json").read_text())
    environment["data"] = {"note": "a caveat"}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return resnet_jax.load(folder)


@pytest.fixture(scope="module")
def pixels():
    return sources.read_set("digits", "").test_images[:5]


def export(run, to, *flags):
    return tiny.program("experiments.export", run, f"--to={to}", *flags)


def written(run, to, *flags):
    """Writes a file; returns it and the printed facts."""
    done = export(run, to, *flags)
    assert done.returncode == 0, done.stderr
    *table, empty, last = done.stdout.splitlines()
    assert (empty, last) == ("", f"{to}: {to.stat().st_size:,} bytes")
    assert list(to.parent.iterdir()) == [to]
    return to, dict(line.split(None, 1) for line in table)


def logits_of(run, pixels):
    """Returns what the run's network computes, as one program."""
    compute = jax.jit(lambda x: run.model.apply(run.variables, run.normalization(x), train=False))
    return np.asarray(compute(pixels))


def of_safetensors(path):
    with safetensors.safe_open(path, "np") as file:
        return file.metadata()


def of_onnx(path):
    return {each.key: each.value for each in onnx.load(path).metadata_props}


@pytest.mark.parametrize("metadata_of", [of_safetensors, of_onnx])
def test_a_file_comes_back_bit_for_bit_and_carries_its_facts(folder, run, tmp_path, metadata_of):
    (tmp_path / "out").mkdir()
    suffix = metadata_of.__name__.removeprefix("of_")
    file, printed = written(folder, tmp_path / "out" / f"net.{suffix}")
    back = ("--data=digits", "--mean=0", "--std=1", "--same_padding=blocks")
    done = tiny.program("experiments.convert", f"--from={file}", f"--to={tmp_path / 'run'}", *back)
    assert done.returncode == 0, done.stderr
    loaded = resnet_jax.load(tmp_path / "run")
    tiny.assert_bit_equal(loaded.variables, run.variables)
    assert loaded.model == dataclasses.replace(run.model, bn_group=64)  # of the recipe

    about = metadata_of(file)
    for name in ("mean", "std"):
        array = np.array(json.loads(about[name]), np.float32)
        tiny.assert_bit_equal(array, np.squeeze(getattr(run.normalization, name), 0).reshape(
            (8, 8, 1) if name == "mean" else (1,)
        ))  # fmt: skip
    assert json.loads(about["class_names"]) == [str(number) for number in range(10)]
    assert json.loads(about["image_shape"]) == [8, 8, 1]
    assert json.loads(about["model"])["depth"] == 8
    assert json.loads(about["test_error"]) == ERROR
    assert about["data_note"] == "a caveat"
    assert about["pixels"] == "uint8 from 0 to 16, grey"
    assert about["input"] == "(pixels - mean) / std, float32 (N, C, H, W)"
    assert (about["run"], about["seed"], about["step"]) == (str(folder), "0", "0")

    numbers = sum(array.size for array in jax.tree.leaves(run.variables))
    assert printed["tensors"].endswith(f", {numbers:,} numbers")
    assert printed["mean"] == "one per pixel and channel, (8, 8, 1)"
    assert printed["test_error"] == "12.35 %"
    note = "torchvision's network with these tensors has same_padding=(), this one ('blocks',)."
    assert printed.get("note") == about.get("note") == (note if suffix == "safetensors" else None)


def test_an_onnx_model_normalises_if_told_to(folder, run, pixels, tmp_path):
    file, printed = written(folder, tmp_path / "net.onnx", "--normalize")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert printed["input"] == "uint8 pixels (N, H, W, C)"
    (value,) = model.graph.input
    dims = [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
    assert (value.name, value.type.tensor_type.elem_type, dims) == (
        "pixels", onnx.TensorProto.UINT8, ["N", 8, 8, 1]
    )  # fmt: skip
    (logits,) = ReferenceEvaluator(model).run(None, {"pixels": pixels})
    wanted = logits_of(run, pixels)
    np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())


ALONE = """
import sys
import numpy as np
import jax
import jax.export
with open(sys.argv[1], "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
np.save(sys.argv[3], exported.call(np.load(sys.argv[2])))
print(*(name for name in ("resnet_jax", "flax", "orbax") if name in sys.modules))
"""


def test_stablehlo_runs_in_a_process_that_has_no_resnet_jax(folder, run, pixels, tmp_path):
    (tmp_path / "out").mkdir()
    file, printed = written(folder, tmp_path / "out" / "net.stablehlo")
    assert printed["input"] == "uint8 pixels (N, H, W, C)"
    np.save(tmp_path / "pixels.npy", pixels)
    # -I: neither the working directory nor PYTHONPATH is searched. With the XLA flags of this
    # process, since others may round otherwise.
    python = (sys.executable, "-I", "-W", "error")
    is_absent = (
        "import importlib.util as u; raise SystemExit(u.find_spec('resnet_jax') is not None)"
    )
    assert subprocess.run([*python, "-c", is_absent], cwd=tmp_path).returncode == 0
    done = subprocess.run(
        [*python, "-c", ALONE, file, "pixels.npy", "logits.npy"],
        cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    logits = np.load(tmp_path / "logits.npy")
    assert np.ptp(logits) > 0.1
    np.testing.assert_array_equal(logits, logits_of(run, pixels))


def test_the_test_error_is_that_of_the_seed_if_it_was_tested(folder, run):
    read = reader.read(folder)
    rows = [{"step": 9, "test/error": [1.5, 2]}]
    saved = dataclasses.replace(read, metrics=rows, config=read.config | {"replicates": 2})
    second = dataclasses.replace(run, seed=1)
    assert [facts.of_run(each, saved)["test_error"] for each in (run, second)] == ["1.5", "2"]
    assert "test_error" not in facts.of_run(dataclasses.replace(run, is_tested=False), saved)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name one run folder: python -m experiments.export RUN --to=FILE."),
        (
            ("{run}", "--to={out}/net.onx"),
            "net.onx must end with .safetensors, .onnx or .stablehlo (nearest: .onnx).",
        ),
        (("{run}", "--to=gs://bucket/net.onnx"), "is a URL; it must be a path on a disk"),
        (("{run}", "--to={out}/there.onnx"), "there.onnx exists already; give another name."),
        (("{run}", "--to={out}/no/net.onnx"), "written: the folder {out}/no does not exist."),
        (("{run}", "--to={out}/net.safetensors", "--normalize"), "net.safetensors holds tensors"),
        (("{run}", "--to={out}/net.stablehlo", "--normalize"), "net.stablehlo always normalises."),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(folder, tmp_path, arguments, words):
    (tmp_path / "there.onnx").write_text("mine")
    given = [argument.format(run=folder, out=tmp_path) for argument in arguments]
    done = tiny.program("experiments.export", *given)
    assert done.returncode == 2, done.stderr
    assert words.format(out=tmp_path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, small_disk):
    disk = small_disk("size=16k")
    done = export(folder, disk / "net.safetensors")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {disk / 'net.safetensors'} cannot be written: No space left on device."
    )
    assert list(disk.iterdir()) == []
