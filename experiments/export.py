"""Writes a run's network to a file that other programs read.

    python -m experiments.export runs/resnet-56 --to=resnet-56.safetensors
    python -m experiments.export runs/resnet-50 --to=resnet-50.onnx --normalize
    python -m experiments.export runs/resnet-50 --to=resnet-50.stablehlo

The suffix is the format: .safetensors has the tensors under torchvision's names, .onnx the network,
and .stablehlo the network and the normalisation of pixels, which JAX runs without this package. A
.safetensors or .onnx file carries in its metadata what it needs from outside: mean, standard
deviation and size of the images, names of the classes, the run, its test error. docs/weights.md
shows how to use each file. The run may be one that experiments.convert made.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments.cli import command_line, new_files, tables
from resnet_jax import trained
from resnet_jax.data import sets
from resnet_jax.errors import UserError, require_packages
from resnet_jax.interop import export, facts
from resnet_jax.runs import reader
from resnet_jax.trained import Trained

_TO = flags.DEFINE_string("to", None, "The file to write: .safetensors, .onnx or .stablehlo.")
_SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; by default the first.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir; by default the run's.")
_NORMALIZE = flags.DEFINE_bool(
    "normalize", False, "With .onnx: the model takes uint8 pixels (N, H, W, C) and normalises them."
)

_PACKAGES = {".safetensors": "safetensors", ".onnx": "onnx", ".stablehlo": "flatbuffers"}
_PIXELS, _IMAGES = "uint8 pixels (N, H, W, C)", "(pixels - mean) / std, float32 (N, C, H, W)"
_NAMES = 3  # of classes, in the summary


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) != 2:
        raise UserError(f"name one run folder: {command_line.spelled('export')} RUN --to=FILE.")
    to = _file()
    run = trained.load(argv[1], _SEED.value, data_dir=_DATA_DIR.value)
    run.check_finite()
    is_inside = to.suffix == ".stablehlo" or _NORMALIZE.value
    about = facts.of_run(run, reader.read(argv[1]))
    about |= {"input": _PIXELS if is_inside else _IMAGES, **_note(run, to.suffix)}
    content = _WRITERS[to.suffix](run, about)
    new_files.write(to, content)
    tables.print_parts(_summary(run, about))
    print(f"\n{to}: {len(content):,} bytes")
    return 0


def _file() -> pathlib.Path:
    """Returns the file of --to, which does not exist yet; raises UserError for any mistake."""
    to = new_files.file(_TO, tuple(_PACKAGES))
    if _NORMALIZE.value and to.suffix != ".onnx":
        always = "always normalises" if to.suffix == ".stablehlo" else "holds tensors only"
        raise UserError(f"--normalize is for .onnx files: {to.name} {always}.")
    require_packages([_PACKAGES[to.suffix]], f"Writing {to.suffix}")
    return to


def _note(run: Trained, suffix: str) -> dict[str, str]:
    """Returns {"note": how the file's network may differ from the run's}, or nothing."""
    notes = []
    if suffix == ".safetensors":
        notes = [
            f"torchvision's network with these tensors has {name}={theirs!r}, this one {ours!r}."
            for name, (ours, theirs) in export.unlike_torchvision(run.model).items()
        ]
    elif suffix == ".onnx" and run.config.model.dtype != "float32":
        notes = [f"It computes in float32, the run in {run.config.model.dtype}."]
    return {"note": " ".join(notes)} if notes else {}


def _safetensors(run: Trained, about: dict[str, str]) -> bytes:
    import safetensors.numpy

    tensors = export.to_torchvision(run.model, run.variables)
    # Hugging Face's libraries require "format".
    return safetensors.numpy.save(tensors, {"format": "pt", **about})


def _onnx(run: Trained, about: dict[str, str]) -> bytes:
    from onnx import helper

    from resnet_jax.interop.onnx_export import to_onnx

    shape = sets.image_shape(run.config.data)
    normalization = run.normalization if _NORMALIZE.value else None
    model = to_onnx(run.model, run.variables, shape, normalization)
    helper.set_model_props(model, about)
    return model.SerializeToString()


def _stablehlo(run: Trained, about: dict[str, str]) -> bytes:
    from resnet_jax.interop.stablehlo import to_stablehlo

    shape = sets.image_shape(run.config.data)
    exported = to_stablehlo(run.model, run.variables, shape, run.normalization)
    return bytes(exported.serialize())  # it has no room for the facts


_WRITERS = {".safetensors": _safetensors, ".onnx": _onnx, ".stablehlo": _stablehlo}


def _summary(run: Trained, about: dict[str, str]) -> tables.Parts:
    """Returns the facts as a table, without the settings of the network."""
    sizes = [array.size for array in jax.tree.leaves(run.variables)]
    names = json.loads(about["class_names"])
    some = ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
    shown = about | {
        "mean": _short(about["mean"]),
        "std": _short(about["std"]),
        "class_names": f"{len(names)}: {some}",
    }
    del shown["model"]
    if "test_error" in about:
        shown["test_error"] = f"{float(about['test_error']):.2f} %"
    rows = [["tensors", f"{len(sizes)}, {sum(sizes):,} numbers"], *map(list, shown.items())]
    return [tables.aligned(rows)]


def _short(numbers: str) -> str:
    """Returns numbers per channel; of numbers per pixel, the shape."""
    array = np.array(json.loads(numbers))
    if array.ndim > 1:
        return f"one per pixel and channel, {array.shape}"
    return ", ".join(f"{number:.4g}" for number in array)


if __name__ == "__main__":
    command_line.run(main)
