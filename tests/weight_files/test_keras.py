"""HDF5 files in the layouts of Keras 1 to 3 are read; links to other places are refused."""

import io
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from resnet_jax.weight_files.files import read
from tests.weight_files.refused import refusal

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
LAYERS = {
    "stem": {"stem/kernel:0": KERNEL, "stem/bias:0": KERNEL[0]},
    "pool": {},
    "conv_bn": {f"conv_bn/{name}:0": KERNEL[1] for name in ("gamma", "beta", "moving_mean")},
}


def write_layers(group, layers, as_bytes=True):
    """Writes what Keras 1 and 2 write: lists of names, in the order of the layers."""
    spelled = (lambda names: [n.encode() for n in names]) if as_bytes else list
    group.attrs["layer_names"] = spelled(layers)
    group.attrs["keras_version"] = "2.15.0"
    for layer, weights in layers.items():
        inside = group.create_group(layer)
        inside.attrs["weight_names"] = spelled(weights) if weights else np.zeros(0)
        for name, array in weights.items():
            inside[name] = array


@pytest.fixture
def file(tmp_path):
    """An open HDF5 file at tmp_path / "x.h5"."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        yield file


@pytest.mark.parametrize("as_bytes", [True, False])
def test_weights_of_keras_2_have_its_order(as_bytes, file, tmp_path):
    write_layers(file, LAYERS, as_bytes)
    file.close()
    loaded = read(tmp_path / "x.h5")
    assert loaded.format == "keras"
    assert [*loaded.tensors] == [
        "stem.stem.kernel", "stem.stem.bias", "conv_bn.conv_bn.gamma", "conv_bn.conv_bn.beta",
        "conv_bn.conv_bn.moving_mean",
    ]  # fmt: skip
    assert np.array_equal(loaded.tensors["stem.stem.kernel"], KERNEL)


def test_a_whole_model_has_the_same_names(file, tmp_path):
    write_layers(file.create_group("model_weights"), LAYERS)
    file["optimizer_weights/iterations:0"] = 5
    file.attrs["model_config"] = "{}"
    file.close()
    tensors = read(tmp_path / "x.h5").tensors
    assert [*tensors][1:3] == ["stem.stem.bias", "conv_bn.conv_bn.gamma"]
    assert tensors["optimizer_weights.iterations"] == 5


def test_flat_names_of_keras_1_are_read(file, tmp_path):
    write_layers(file, {"conv1": {"conv1_W:0": KERNEL, "conv1_b:0": KERNEL[0]}})
    file.close()
    assert [*read(tmp_path / "x.h5").tensors] == ["conv1.conv1_W", "conv1.conv1_b"]


def test_weights_of_keras_3_are_read(file, tmp_path):
    file["layers/conv2d/vars/0"] = KERNEL
    file["layers/conv2d/vars/1"] = KERNEL[0].astype(np.float16)
    file["layers/conv2d/vars"].attrs["name"] = "stem"
    file["layers/dense/vars/0"] = KERNEL.astype(ml_dtypes.bfloat16)
    file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
    file["layers/dense/vars"].attrs["name"] = "probs"
    file["layers/functional/layers/dense/vars/0"] = KERNEL[1]  # of a layer without a name
    file["note"] = "text"
    file.create_group("vars")
    file.close()
    tensors = read(tmp_path / "x.h5").tensors
    assert [*tensors] == [
        "stem.0", "stem.1", "probs.0", "layers.functional.layers.dense.vars.0"
    ]  # fmt: skip
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, np.float32]
    assert [a.dtype for a in tensors.values()] == dtypes
    assert np.array_equal(tensors["probs.0"], KERNEL)


def test_weights_of_keras_3_without_the_names_of_layers_are_refused(file, tmp_path):
    file["layers/conv2d/vars/0"] = KERNEL
    file.close()
    assert refusal(tmp_path / "x.h5") == (
        "lacks the names of layers (layers/conv2d/vars/0 is of a file of early Keras 3); save the "
        "model with model.save('NAME.h5')."
    )


def write_archive(path, config=b'{"class_name": "Functional"}'):
    with h5py.File(io.BytesIO(), "w") as file:
        file["layers/conv2d/vars/0"] = KERNEL
        file["layers/conv2d/vars"].attrs["name"] = "stem"
        file.flush()
        weights = file.id.get_file_image()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)


def test_an_archive_of_keras_3_has_weights_and_a_config(tmp_path):
    write_archive(tmp_path / "x.keras")
    loaded = read(tmp_path / "x.keras")
    assert (loaded.format, loaded.config) == ("keras", {"class_name": "Functional"})
    assert [*loaded.tensors] == ["stem.0"]
    assert np.array_equal(loaded.tensors["stem.0"], KERNEL)


def test_a_config_that_is_no_model_counts_as_none(tmp_path):
    write_archive(tmp_path / "x.keras", b"[1]")
    assert read(tmp_path / "x.keras").config is None


def test_an_archive_with_a_damaged_config_is_refused(tmp_path):
    write_archive(tmp_path / "x.keras", b"{")
    assert refusal(tmp_path / "x.keras").startswith("is damaged, cut short or no keras file (Exp")


def test_an_archive_that_declares_too_much_is_refused(tmp_path):
    write_archive(tmp_path / "x.keras")
    content = (tmp_path / "x.keras").read_bytes()
    entry = content.rindex(b"PK\x01\x02")  # of the weights, in the list at the end
    forged = content[: entry + 24] + b"\xff\xff\xff\xf0" + content[entry + 28 :]
    (tmp_path / "x.keras").write_bytes(forged)
    assert refusal(tmp_path / "x.keras").startswith("declares 4,043,309,055 bytes in a file of ")


@pytest.mark.parametrize(
    "link",
    [h5py.SoftLink("/a"), h5py.SoftLink("/missing"), h5py.ExternalLink("secret.h5", "/a")],
)
def test_links_are_refused(link, file, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["a"] = KERNEL
    file["a"] = KERNEL
    file["layers/b"] = link
    file.close()
    assert refusal(tmp_path / "x.h5") == (
        "has a link at layers/b; allowed are data in the file itself."
    )


def test_one_object_under_two_names_is_refused(file, tmp_path):
    group = file.create_group("a/b")
    group["c"] = file["a"]  # a group in itself
    file.close()
    assert refusal(tmp_path / "x.h5").startswith("has a link at a/b/c to what it holds")


def test_deep_groups_are_refused(file, tmp_path):
    file["/".join("g" * 2000)] = KERNEL
    file.close()
    assert refusal(tmp_path / "x.h5") == "nests its groups deeper than 64 levels."


def test_data_in_other_files_are_refused(file, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    file.create_dataset("a", (6,), "f4", external=[(str(tmp_path / "secret"), 0, 24)])
    file.close()
    assert refusal(tmp_path / "x.h5") == "has the data of a in another file."


def test_virtual_datasets_are_refused(file, tmp_path):
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a", (6,))
    file.create_virtual_dataset("a", layout)
    file.close()
    assert refusal(tmp_path / "x.h5") == "has the data of a in another file."


def test_data_that_are_declared_but_not_there_are_refused(file, tmp_path):
    file.create_dataset("a", (2**40,), "f4", chunks=(1024,), compression="gzip")
    file.close()
    assert refusal(tmp_path / "x.h5").startswith("declares 4,398,046,511,104 bytes in a file of ")


def test_a_weight_that_is_missing_is_named(file, tmp_path):
    write_layers(file, LAYERS)
    del file["stem/stem/bias:0"]
    file.close()
    assert refusal(tmp_path / "x.h5") == (
        "is damaged: it lacks the weight stem/stem/bias:0 of its own list."
    )


@pytest.mark.parametrize("dtype", ["i4,f4", "V2"])
def test_other_dtypes_are_refused(dtype, file, tmp_path):
    file["a"] = np.zeros(2, dtype)
    file.close()
    assert refusal(tmp_path / "x.h5").startswith("holds a of dtype ")


def test_references_are_refused(file, tmp_path):
    file["a"] = file.ref
    file.close()
    assert refusal(tmp_path / "x.h5") == "holds a of dtype object; allowed are numbers and bools."
