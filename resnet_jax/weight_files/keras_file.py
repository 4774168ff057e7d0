"""Reads files of Keras: whole models (.h5, .keras) and weights, of Keras 1 to 3.

The HDF5 library itself can hang on a damaged list of strings, so only open HDF5 files from a source
that you trust.
"""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from resnet_jax.weight_files.refusals import Refusal, check_expansion, shown

if TYPE_CHECKING:
    import h5py

_DEPTH = 64  # groups in groups; Keras 3 nests a few per layer that holds layers
_MODEL = "model_weights"  # the group that a whole model in HDF5 has its weights in
WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # of a .keras archive


def read(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each weight's dotted HDF5 path and array, in Keras's order if the file states it.

    A path lacks the ``:0`` at its end and, at its start, the group that only files of whole models
    have. Keras 3 writes "layers/conv2d_3/vars/0", and the layer's name apart; here this is
    "conv2_block1_1_conv/0". Datasets of strings are left out. Needs h5py.

    Raises:
      Refusal: the file links to another place, lacks a weight or the names of layers, or declares
        too many bytes.
      Exception: of any type, if it is damaged otherwise.
    """
    import h5py

    with _open(path) as file:
        datasets = dict(_datasets(file, "", set()))
        check_expansion(path, sum(dataset.nbytes for dataset in datasets.values()))
        prefix = f"{_MODEL}/" if _MODEL in file else ""
        ordered = [prefix + name for name in _declared(file[_MODEL] if prefix else file)]
        for name in ordered:
            if name not in datasets:
                raise Refusal(f"is damaged: it lacks the weight {shown(name)} of its own list")
        named = _named(datasets)
        for name in dict.fromkeys([*ordered, *datasets]):
            if h5py.check_string_dtype(datasets[name].dtype) is None:
                short = named.get(name, name).removeprefix(prefix).removesuffix(":0")
                yield short.replace("/", "."), _array(datasets[name])


def config(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the config of a whole model, {"class_name", "config"}; None if the file has none.

    Raises:
      Exception: of any type, if it is damaged.
    """
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            text = _member(archive, _CONFIG, path)
    else:
        with _open(path) as file:
            text = file.attrs.get("model_config", "null")
    content = json.loads(text)
    return content if isinstance(content, dict) and "class_name" in content else None


@contextlib.contextmanager
def _open(path: pathlib.Path) -> "Iterator[h5py.File]":
    """Opens the HDF5 file, which is in memory if it was in an archive."""
    import h5py

    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(_member(archive, WEIGHTS, path))
        with h5py.File(content, "r") as file:
            yield file
    else:
        with h5py.File(path, "r") as file:
            yield file


def _is_archive(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _member(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> bytes:
    check_expansion(path, archive.getinfo(name).file_size)
    return archive.read(name)


def _datasets(
    group: "h5py.Group", prefix: str, seen: set[int]
) -> "Iterator[tuple[str, h5py.Dataset]]":
    """Yields each dataset and its path, and refuses all that leads elsewhere."""
    import h5py

    if prefix.count("/") > _DEPTH:
        raise Refusal(f"nests its groups deeper than {_DEPTH} levels")
    for key in group:
        name = prefix + key
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise Refusal(f"has a link at {shown(name)}; allowed are data in the file itself")
        member = group[key]
        # A group may hold itself, and one object may have thousands of paths.
        address = h5py.h5o.get_info(member.id).addr
        if address in seen:
            raise Refusal(f"has a link at {shown(name)} to what it holds under another name")
        seen.add(address)
        if isinstance(member, h5py.Group):
            yield from _datasets(member, f"{name}/", seen)
        elif isinstance(member, h5py.Dataset):
            if member.is_virtual or member.external:
                raise Refusal(f"has the data of {shown(name)} in another file")
            yield name, member


def _declared(group: "h5py.Group") -> list[str]:
    """Returns the weights' paths in a group, in the order of the lists of Keras 1 and 2."""
    return [
        f"{layer}/{weight}"
        for layer in _strings(group.attrs.get("layer_names", ()))
        for weight in _strings(group[layer].attrs.get("weight_names", ()))
    ]


def _named(datasets: "dict[str, h5py.Dataset]") -> dict[str, str]:
    """Returns the paths of Keras 3's numbered weights, with the names of their layers."""
    numbered = [name for name in datasets if "/vars/" in name]
    named = {}
    for name in numbered:
        (layer,) = _strings([datasets[name].parent.attrs.get("name", "")])
        if layer:
            group, _, number = name.rpartition("/vars/")
            named[name] = f"{group.rpartition('layers/')[0]}{layer}/{number}"
    if numbered and not named:
        raise Refusal(
            f"lacks the names of layers ({shown(numbered[0])} is of a file of early Keras 3); save "
            "the model with model.save('NAME.h5')"
        )
    return named


def _strings(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _array(dataset: "h5py.Dataset") -> np.ndarray:
    array = np.asarray(dataset[()])
    # HDF5 has no bfloat16: Keras 3 writes two opaque bytes, and says what they are.
    if array.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16":
        return array.view(ml_dtypes.bfloat16)
    return array
