"""Facts about a trained network that its file carries for those who use it elsewhere."""

import json
from typing import Any

import numpy as np

from resnet_jax.data import sets
from resnet_jax.runs import reader
from resnet_jax.trained import Trained


def of_run(run: Trained, saved: reader.Run) -> dict[str, str]:
    """Returns name -> text, JSON for lists, numbers and objects.

    "mean" and "std" are those of (pixels - mean) / std: one number per channel or, for a mean per
    pixel, nested lists (H, W, C). Each number is the shortest that rounds to the float32.

    Args:
      run: the network; its normalisation is measured here, if it is not fixed.
      saved: the run folder that it was loaded from.

    Raises:
      UserError: the data set that the normalisation is measured on is not on this machine.
    """
    config = run.config
    shape = sets.image_shape(config.data)
    facts: dict[str, Any] = {
        "run": str(saved.path),
        "seed": run.seed,
        "step": run.step,
        "data": config.data.name,
        "pixels": _pixels(run, shape[-1]),
        "image_shape": shape,
        "mean": _numbers(run.normalization.mean),
        "std": _numbers(run.normalization.std),
        "class_names": run.class_names,
        "model": config.model.to_dict(),
    }
    error = reader.final_test_error(saved, run.seed)
    if run.is_tested and error is not None:
        facts["test_error"] = error
    if note := saved.environment.get("data", {}).get("note"):
        facts["data_note"] = note
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
    }


def _pixels(run: Trained, channels: int) -> str:
    """Returns how the pixels that the normalisation takes are made."""
    data = run.config.data
    known = sets.DATA_SETS[data.name]
    text = f"uint8 from 0 to {known.white}, {'RGB' if channels == 3 else 'grey'}"
    if known.resident:
        return text
    return (
        f"{text}; the centre of a picture whose short side is resized ({data.resample}) to "
        f"{run.config.eval.short_side}"
    )


def _numbers(array: Any) -> Any:
    """Returns an array (1, H, W, C) as lists (H, W, C), or as one list if H = W = 1."""
    array = np.asarray(array, np.float32)
    shortest = np.array([float(str(number)) for number in array.flat]).reshape(array.shape)
    return (shortest[0] if array.shape[1:3] != (1, 1) else shortest[0, 0, 0]).tolist()
