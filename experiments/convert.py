"""Converts a network that others trained to a run folder.

    python -m experiments.convert --from=resnet50.pth --to=runs/resnet50 --data=imagenet2012
    python -m experiments.convert --from=resnet56.th --to=runs/resnet56 --data=cifar10 \
        --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225

It reads .safetensors, PyTorch's .pth and .th (only tensors, never code), .npz and Keras' weights,
with the names of torchvision, timm, Hugging Face, Keras applications, Flax's ImageNet example and
akamaster/pytorch_resnet_cifar10. ONNX files and whole Keras models (.h5, .keras) may have any
names, since their graph tells the network; both are computed on the same pictures, and must agree.

Tensors fix the architecture; a tensor without a place refuses the file. Without a graph they do not
fix the conventions, which are those of the code base unless a flag says otherwise: on which
convolution a bottleneck strides, how layers of stride 2 pad, BatchNorm's epsilon, the order of the
colours, where shortcut A adds channels. --check=IMAGES.npy with --expected=LOGITS.npz tries them
all and takes those that compute what the network computed.
"""

import zipfile
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import RenderableType

from configs import cifar10, imagenet
from experiments.cli import command_line, tables
from resnet_jax.allowed import Range, check_choice
from resnet_jax.data import sets
from resnet_jax.errors import UserError
from resnet_jax.interop import run_folder, structure, trial, weights
from resnet_jax.interop.schemes import SCHEMES
from resnet_jax.networks.architectures import BOTTLENECK_STRIDES, PADDED
from resnet_jax.resolve import resolve
from resnet_jax.runs import storage
from resnet_jax.settings import SETTINGS

_FROM = flags.DEFINE_string("from", None, "The file with the weights.")
_TO = flags.DEFINE_string("to", None, "The run folder to write.")
_PREFIX = flags.DEFINE_string(
    "prefix", None, "What precedes the names of the network's tensors, if the file has several."
)
_DATA = flags.DEFINE_string("data", None, "The data set it was trained on; see data.name.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Its TFDS data_dir; see data.dir.")
_CLASSES = flags.DEFINE_list("classes", [], "Its classes, if not all; see data.classes.")
_MEAN = flags.DEFINE_list(
    "mean", None, "R,G,B that were subtracted from pixels in [0, 1]; by default ImageNet's usual "
    "ones, for its pictures only.",
)  # fmt: skip
_STD = flags.DEFINE_list("std", None, "R,G,B that the rest was divided by; see --mean.")
_STRIDE = flags.DEFINE_enum(
    "bottleneck_stride", None, BOTTLENECK_STRIDES, "See model.bottleneck_stride."
)
_SAME_PADDING = flags.DEFINE_list("same_padding", None, "See model.same_padding.")
_EPSILON = flags.DEFINE_float("epsilon", None, "See model.bn_epsilon.")
_ORDER = flags.DEFINE_enum("order", None, ["RGB", "BGR"], "Order of the colours in the input.")
_NEW_CHANNELS = flags.DEFINE_enum(
    "new_channels", None, ["after", "around"], "Where shortcut A adds channels to the old ones."
)
_SHORTCUT = flags.DEFINE_enum(
    "shortcut", None, ["none", "A"], "The shortcut, if the file has no projection."
)


_CHECK = flags.DEFINE_string(
    "check", None, "Tries all conventions that no flag gives on these images: .npy or .npz ("
    "images), (N, H, W, C), float32 as the network takes them, or uint8 for --mean and --std.",
)  # fmt: skip
_EXPECTED = flags.DEFINE_string(
    "expected", None, "With --check, what the network computes: an .npz of logits and, if you have "
    "them, stem, stage1 ... and pooled, as (N, H, W, C).",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    path = command_line.required(_FROM)
    to = storage.locate(command_line.required(_TO), "--to")
    data = command_line.required(_DATA)
    check_choice("--data", data, sets.DATA_SETS)
    given = _given()
    if _CHECK.value is not None:
        imported = _checked(path, given)
    elif _EXPECTED.value is not None:
        raise UserError("--expected needs the images that the numbers belong to; give --check too.")
    else:
        imported = weights.load(path, prefix=_PREFIX.value, **given)
    channels, shown = imported.image_channels, sets.DATA_SETS[data].image_shape[2]
    if channels != shown:
        raise UserError(
            f"{path} takes images of {channels} channels, but those of --data={data} have {shown}."
        )
    config = _config(imported, data)
    run_folder.write(imported, config, to, path)
    tables.print_parts(_summary(imported, given.keys()))
    print(f"\n{to}")
    return 0


def _checked(path: str, given: dict[str, Any]) -> weights.Imported:
    """Returns the network with the conventions that compute what --expected has."""
    images, expected = _arrays(_CHECK), _arrays(_EXPECTED)
    pixels = images.get("images", next(iter(images.values())))
    named, assumed = weights.find(path, _PREFIX.value)
    channels = structure.image_channels(named, path)
    if pixels.ndim != 4 or pixels.shape[-1] != channels:
        is_first = pixels.ndim == 4 and pixels.shape[1] == channels
        hint = "; yours are (N, C, H, W): transpose them with (0, 2, 3, 1)" if is_first else ""
        raise UserError(
            f"--check={_CHECK.value} has images of the shape {pixels.shape}; allowed is (N, H, W, "
            f"{channels}){hint}."
        )
    if pixels.dtype == np.uint8:
        mean, std = (_numbers(flag, pixels.shape[-1]) for flag in (_MEAN, _STD))
        if mean is None or std is None:
            raise UserError(f"--check={_CHECK.value} has uint8 pixels: give --mean and --std.")
        pixels = (pixels / 255 - np.array(mean)) / np.array(std)
    pixels = pixels.astype(np.float32)
    found = list(trial.trials(named, path, assumed, given, pixels, expected))
    best = min(found, key=lambda each: max(each.errors.values()))
    if not best.fits:
        raise UserError(
            f"none of {len(found)} combinations of conventions computes what --expected="
            f"{_EXPECTED.value} has; the closest ({_spelled(best)}) differs first at "
            f"{best.differs_at!r}, by {best.errors[best.differs_at]:.2g} of its largest number."
        )
    # Rounding decides between combinations that are as good; the first is the likeliest.
    limit = 3 * max(best.errors.values()) + 1e-7
    as_good = {
        _spelled(each): each for each in reversed(found) if max(each.errors.values()) <= limit
    }
    first, *others = reversed(as_good)
    errors = ", ".join(f"{name} {error:.1e}" for name, error in as_good[first].errors.items())
    print(f"{first} fits, of {len(found)} combinations; largest differences: {errors}.")
    for spelled in others:
        print(f"{spelled} fits as well: these images cannot tell.")
    print()
    return as_good[first].network


def _spelled(each: trial.Trial) -> str:
    """Returns the conventions of a trial as flags."""
    values = {
        name: ",".join(value) if name == "same_padding" else value
        for name, value in vars(each.network.conventions).items()
        if name in _acting(each.network)
    }
    return " ".join(f"--{name}={value}" for name, value in values.items())


def _arrays(flag: flags.FlagHolder[str | None]) -> dict[str, np.ndarray]:
    """Returns the arrays of --check or --expected."""
    path = command_line.required(flag)
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"images": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"--{flag.name}={path} is no readable .npy or .npz file ({e}).") from e
    if not arrays:
        raise UserError(f"--{flag.name}={path} holds no array.")
    return arrays


def _given() -> dict[str, Any]:
    """Returns the conventions that flags give."""
    values: dict[str, Any] = {
        "bottleneck_stride": _STRIDE.value,
        "same_padding": None if _SAME_PADDING.value is None else tuple(_SAME_PADDING.value),
        "epsilon": _EPSILON.value,
        "order": _ORDER.value,
        "new_channels": _NEW_CHANNELS.value,
        "shortcut": _SHORTCUT.value,
    }
    given = {name: value for name, value in values.items() if value is not None}
    for name in given.get("same_padding", ()):
        check_choice("--same_padding", name, PADDED)
    if "epsilon" in given:
        Range(0, 1, above=True).check("--epsilon", given["epsilon"])
    return given


def _config(imported: weights.Imported, data: str) -> ConfigDict:
    """Returns the resolved config of a run of this network: that of its data set's recipe."""
    facts = sets.DATA_SETS[data]
    config = cifar10.get_config() if facts.resident else imagenet.get_config()
    config.data.name, config.data.dir = data, _DATA_DIR.value
    config.data.classes = _classes()
    config.data.validation = 0  # others chose what to hold out
    config.schedule.name = "constant"  # nothing is trained, and "plateau" needs a validation split
    for name, value in imported.settings.items():
        config.model[name] = value
    mean, std = (_numbers(flag, facts.image_shape[-1]) for flag in (_MEAN, _STD))
    # Keras' own networks take other numbers than ImageNet's usual ones; a graph does not tell.
    is_usual = not facts.resident and imported.scheme not in ("keras", "graph")
    if not is_usual and (mean is None or std is None):
        raise UserError(
            f"--data={data} needs --mean and --std: the tensors cannot tell how pixels were "
            "normalised; --mean=0 and --std=1 if they were not."
        )
    config.data.mean, config.data.std = "channel", True
    if mean is not None:
        config.data.channel_mean = tuple(255 * number for number in mean)
    if std is not None:
        config.data.channel_std = tuple(255 * number for number in std)
    return resolve(config)


def _classes() -> tuple[int, ...]:
    """Returns the labels of --classes."""
    try:
        return tuple(int(text) for text in _CLASSES.value)
    except ValueError:
        raise UserError(
            f"--classes={','.join(_CLASSES.value)} are not labels; give numbers, as in 3,5."
        ) from None


def _numbers(flag: flags.FlagHolder[list[str] | None], channels: int) -> list[float] | None:
    """Returns the numbers of --mean or --std, one per channel; None if it is not given."""
    if flag.value is None:
        return None
    try:
        numbers = [float(text) for text in flag.value]
    except ValueError:
        numbers = []
    numbers = numbers * channels if len(numbers) == 1 else numbers
    allowed = Range(0, 1, above=flag is _STD)
    if len(numbers) != channels or not all(number in allowed for number in numbers):
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} is not one number, or one per channel "
            f"({channels}); allowed are {allowed}."
        )
    return numbers


def _acting(imported: weights.Imported) -> set[str]:
    """Returns the conventions that have an effect in a network."""
    model = imported.model
    acts = {
        "bottleneck_stride": model.arch.block == "bottleneck",
        "epsilon": model.norm == "batch",
        "new_channels": model.shortcut == "A",
        "shortcut": model.shortcut in ("none", "A"),
        "shortcut_downsampling": False,  # names and graphs tell it
    }
    return {name for name in vars(imported.conventions) if acts.get(name, True)}


def _summary(imported: weights.Imported, given: Collection[str]) -> tables.Parts:
    """Returns what was found and what was assumed."""
    shown = ("family", "depth", "shortcut", "stem", "width", "stem_filters", "norm", "num_classes")
    unusual = [
        key
        for key in ("bottleneck_width", "groups", "se_reduction", "shortcut_downsampling")
        if imported.settings[key] != SETTINGS[f"model.{key}"].implied
    ]
    of_tensors = [[f"model.{key}", str(imported.settings[key])] for key in (*shown, *unusual)]
    acts = _acting(imported)
    is_graph = imported.scheme == "graph"
    told = dict.fromkeys(acts - {"order"}, "the graph") if is_graph else {}
    if _CHECK.value is not None:
        told = dict.fromkeys(acts, "--check")
    of_scheme = [
        [name, str(value), "a flag" if name in given else told.get(name, "assumed")]
        for name, value in vars(imported.conventions).items()
        if name in acts
    ]
    lines: list[RenderableType] = [
        f"Found by {SCHEMES[imported.scheme].title}.",
        "",
        tables.aligned([["from the tensors", ""], *of_tensors]),
        "",
        tables.aligned([["not in the tensors", "", "from"], *of_scheme]),
    ]
    if imported.without_norm:
        layers = ", ".join(imported.without_norm)
        lines += ["", f"Convolutions without a norm, which got one that changes nothing: {layers}."]
    if imported.elsewhere:
        lines += ["", f"{len(imported.elsewhere)} tensors outside of the network were not used."]
    return lines


if __name__ == "__main__":
    command_line.run(main)
