"""Predicts the classes of pictures.

    python -m experiments.predict runs/resnet-50 cat.jpg folder/ --top=5
    python -m experiments.predict runs/resnet-50 folder/ --page=page.html --grad_cam

RUN is a run folder, of a run or of experiments.convert. Each IMAGE is a picture, or a folder with
pictures. Pictures are prepared as in evaluation, by the same code. The program
prints the likeliest classes with their probabilities; --json prints one JSON object, and --page
writes one HTML file with thumbnails, and with --grad_cam where each picture supports its first
class. A picture that cannot be read is named and left out, and the exit code is then 1.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.cli import command_line, new_files, tables
from experiments.prediction import inputs, page
from experiments.prediction.page import Guess, Picture
from resnet_jax import trained
from resnet_jax.allowed import Range
from resnet_jax.analysis import examples, predictions
from resnet_jax.analysis.grad_cam import grad_cam
from resnet_jax.data import pictures, sets
from resnet_jax.errors import UserError
from resnet_jax.state import Variables

_TOP = flags.DEFINE_integer("top", 5, "Number of classes per picture.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_PAGE = flags.DEFINE_string("page", None, "The HTML file to write.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --page if it exists.")
_GRAD_CAM = flags.DEFINE_bool("grad_cam", False, "Show Grad-CAM of the last stage on the page.")
_SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; by default the first.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir; by default the run's.")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) < 3:
        raise UserError(
            "name a run folder and pictures: python -m experiments.predict RUN IMAGE..."
        )
    Range(1, whole=True).check("--top", _TOP.value)
    page_path = _page_path()
    files = pictures.Files(pictures.find(argv[2:]))
    run = trained.load(argv[1], _SEED.value, data_dir=_DATA_DIR.value)
    found = _predict(run, files)
    inputs.require_readable(files)
    data = run.config.data
    about = {
        "run": argv[1],
        "seed": run.seed,
        "step": run.step,
        "data": data.name,
        "preparation": pictures.preparation(data, run.config.eval),
    }
    unreadable = {files.names[number]: why for number, why in sorted(files.unreadable.items())}
    if _JSON.value:
        print(json.dumps(about | _as_json(found, unreadable)))
    else:
        tables.print_parts(_as_text(about, found, unreadable))
    if page_path is not None:
        new_files.write(page_path, page.render(about, found, unreadable).encode())
    return 1 if unreadable else 0


def _page_path() -> pathlib.Path | None:
    if _PAGE.value is None:
        if _GRAD_CAM.value:
            raise UserError("--grad_cam is shown on a page; give --page=FILE.html as well.")
        return None
    return new_files.file(_PAGE, overwrite=_OVERWRITE)


def _predict(run: trained.Trained, files: pictures.Files) -> list[Picture]:
    """Returns the readable pictures with their predictions."""
    data = run.config.data
    names = run.class_names
    logs_of = predictions.log_probabilities(run)

    def of(variables: Variables, groups: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        values = {"logs": logs_of(variables, groups)}
        if _PAGE.value is not None:
            values["images"] = images_BHWC = groups[0][:, 0]
            if _GRAD_CAM.value:
                values["maps"] = grad_cam(run.model, variables, run.normalization(images_BHWC))
        return values

    found = []
    with examples.of_files(run, files) as given:
        batches = inputs.counted(examples.outputs(run, given, of), len(files))
        for numbers, values in batches:
            for row, number in enumerate(numbers.tolist()):
                if number in files.unreadable:
                    continue
                logs = values["logs"][row]
                predictions.require_probabilities(logs)
                likeliest = np.argsort(-logs, kind="stable")[: _TOP.value].tolist()
                shown: dict[str, Any] = {}
                if "images" in values:
                    heat = values["maps"][row] if "maps" in values else None
                    white = sets.DATA_SETS[data.name].white
                    shown = page.thumbnails(values["images"][row], white, heat)
                guesses = [Guess(c, names[c], float(np.exp(logs[c]))) for c in likeliest]
                notes = files.notes(number, data)
                found.append(Picture(files.names[number], notes, guesses, **shown))
    return found


def _as_json(found: Sequence[Picture], unreadable: dict[str, str]) -> dict[str, Any]:
    return {
        "pictures": [
            {
                "file": picture.file,
                "notes": picture.notes,
                "top": [guess._asdict() for guess in picture.guesses],
            }
            for picture in found
        ],
        "unreadable": [{"file": file, "reason": why} for file, why in unreadable.items()],
    }


def _as_text(
    about: dict[str, Any], found: Sequence[Picture], unreadable: dict[str, str]
) -> tables.Parts:
    parts: list[Any] = [
        f"{about['run']}, seed {about['seed']}, step {about['step']}, trained on {about['data']}: "
        f"{len(found):,} {'picture' if len(found) == 1 else 'pictures'}.",
        about["preparation"],
    ]
    for picture in found:
        notes = f" ({'; '.join(picture.notes)})" if picture.notes else ""
        rows = [[guess.name, f"{100 * guess.probability:.2f}"] for guess in picture.guesses]
        parts += ["", f"{picture.file}{notes}", tables.aligned([["class", "%"], *rows], left=1)]
    if unreadable:
        parts += ["", "Left out, because they cannot be read:"]
        parts += [f"{file}: {why}" for file, why in unreadable.items()]
    return parts


if __name__ == "__main__":
    command_line.run(main)
