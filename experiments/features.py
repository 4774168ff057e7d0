"""Writes the features of pictures, or of a split of a run's data set, to an .npz file.

    python -m experiments.features runs/resnet-50 folder/ --out=features.npz
    python -m experiments.features runs/resnet-56 --split=train --endpoints=stage2,pooled \
        --mean_over_positions --out=features.npz

The file has a float32 array per endpoint, (N, h, w, C) or (N, C), and either `files`, the names of
the pictures, or `labels`, int32. Pictures are prepared as in evaluation. A picture that cannot be
read is named and left out, and the exit code is then 1.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from absl import flags, logging

from experiments.cli import command_line, new_files
from experiments.prediction import inputs
from resnet_jax import trained
from resnet_jax.allowed import Choices, check_choice
from resnet_jax.analysis import examples
from resnet_jax.data import pictures
from resnet_jax.errors import RunError, UserError
from resnet_jax.networks.features import endpoints
from resnet_jax.runs import storage

_OUT = flags.DEFINE_string("out", None, "The .npz file to write.")
_ENDPOINTS = flags.DEFINE_list("endpoints", ["pooled"], "Any of stem, stage1 ..., pooled, logits.")
_SPLIT = flags.DEFINE_string("split", None, "train, validation or test, instead of pictures.")
_MEAN = flags.DEFINE_bool("mean_over_positions", False, "Average over height and width.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
_SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; by default the first.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir; by default the run's.")

Arrays = dict[str, np.ndarray]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) < 2 or (len(argv) > 2) == (_SPLIT.value is not None):
        raise UserError(
            "name a run folder, and either pictures or --split: python -m experiments.features RUN "
            "IMAGE... --out=X.npz."
        )
    if _SPLIT.value is not None:
        check_choice("--split", _SPLIT.value, examples.SPLITS)
    out = new_files.file(_OUT, (".npz",), _OVERWRITE)
    files = pictures.Files(pictures.find(argv[2:])) if len(argv) > 2 else None
    run = trained.load(argv[1], _SEED.value, data_dir=_DATA_DIR.value)
    Choices(tuple(endpoints(run.model))).check("--endpoints", _ENDPOINTS.value)
    run.check_finite()
    opened = examples.of_files(run, files) if files else examples.of_split(run, str(_SPLIT.value))
    with opened as given:
        arrays, labels = _compute(run, given, out)
    if files is None:
        arrays["labels"] = labels
    else:
        inputs.require_readable(files)
        readable = [number for number in range(len(files)) if number not in files.unreadable]
        if files.unreadable:
            arrays = {name: array[readable] for name, array in arrays.items()}
        arrays["files"] = np.array([files.names[number] for number in readable])
    _write(out, arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {' x '.join(map(str, array.shape))}")
    print(out)
    return 1 if files and files.unreadable else 0


def _compute(
    run: trained.Trained, given: examples.Examples, out: pathlib.Path
) -> tuple[Arrays, np.ndarray]:
    """Returns the features and the labels."""
    shapes = {name: (len(given), *_shape(run, name)) for name in _ENDPOINTS.value}
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    logging.info("%d pictures, %.1f MiB of features", len(given), size / inputs.MIB)
    inputs.require_room(size, out.parent)
    arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    labels = np.empty(len(given), np.int32)
    done = 0
    of = examples.features_of(run, _ENDPOINTS.value, _MEAN.value)
    for numbers, values in inputs.counted(examples.outputs(run, given, of), len(given)):
        rows = slice(done, done := done + len(numbers))
        labels[rows] = numbers
        for name, value in values.items():
            arrays[name][rows] = value
    return arrays, labels


def _shape(run: trained.Trained, name: str) -> tuple[int, ...]:
    """Returns the shape of a picture's feature."""
    size = endpoints(run.model)[name]
    if size.stride is None or _MEAN.value:
        return (size.channels,)
    side = -(-run.config.data.image_size // size.stride)
    return side, side, size.channels


def _write(out: pathlib.Path, arrays: Arrays) -> None:
    try:
        with storage.writing(out) as f:
            np.savez(f, **cast("dict[str, Any]", arrays))
    except OSError as e:
        raise RunError(f"{out} cannot be written: {storage.reason(e)}.") from e


if __name__ == "__main__":
    command_line.run(main)
