"""Files of torch.save, in both formats, are read without PyTorch."""

import argparse
import collections

import ml_dtypes
import numpy as np
import pytest

from resnet_jax.weight_files.files import read
from tests.weight_files import torch_writer
from tests.weight_files.torch_writer import STORAGES, Call, Storage, dense, save, tensor

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def some(dtype):
    """Numbers that every dtype holds exactly, and bytes that differ in every byte order."""
    return np.array([[0, 1, 3], [5, 2, 1]]).astype(dtype)


def same(array, expected):
    return array.dtype == expected.dtype and np.array_equal(array, expected)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_is_kept(legacy, protocol, tmp_path):
    arrays = {kind: some(dtype) for kind, dtype in STORAGES.items()}
    value = collections.OrderedDict((kind, dense(array)) for kind, array in arrays.items())
    file = read(save(tmp_path / "x", value, legacy=legacy, protocol=protocol))
    assert (file.format, file.graph) == ("pytorch", None)
    assert [*file.tensors] == [*arrays]
    assert all(same(file.tensors[kind], array) for kind, array in arrays.items())


@FORMATS
@pytest.mark.parametrize("dtype", ["uint16", "uint64", "float8_e4m3fn", "bfloat16"])
def test_dtypes_without_a_storage_type_are_kept(dtype, legacy, tmp_path):
    array = some(getattr(ml_dtypes, dtype, dtype))
    storage = Storage(array.view(np.uint8), kind="torch.storage.UntypedStorage")
    value = tensor(storage, 1, (2, 2), (3, 1), "_rebuild_tensor_v3",
                   torch_writer.name(f"torch.{dtype}"))  # fmt: skip
    file = read(save(tmp_path / "x", {"a": value}, legacy=legacy))
    assert same(file.tensors["a"], array[:, 1:])


@FORMATS
def test_views_share_their_storage(legacy, tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage(base)
    value = {
        "base": tensor(storage, 0, (4, 6), (6, 1)),
        "transposed": tensor(storage, 0, (6, 4), (1, 6)),
        "part": tensor(storage, 7, (2, 2), (12, 3)),
        "scalar": tensor(storage, 23, (), ()),
        "empty": tensor(storage, 0, (0, 3), (3, 1)),
        "expanded": tensor(storage, 5, (3, 2), (0, 1)),
        "one": tensor(storage, 5, (1, 1), (10**18, 77)),
    }
    tensors = read(save(tmp_path / "x", value, legacy=legacy)).tensors
    assert same(tensors["base"], base)
    assert same(tensors["transposed"], base.T)
    assert same(tensors["part"], base[1::2, 1:5:3])
    assert same(tensors["scalar"], base[3, 5])
    assert same(tensors["empty"], np.empty((0, 3), np.float32))
    assert same(tensors["expanded"], np.stack([base.ravel()[5:7]] * 3))
    assert same(tensors["one"], base[:1, 5:6])
    assert np.shares_memory(tensors["base"], tensors["transposed"])


def test_an_empty_storage_is_read(tmp_path):
    file = read(save(tmp_path / "x", {"a": dense(np.empty((2, 0), np.float32))}))
    assert file.tensors["a"].shape == (2, 0)


@FORMATS
def test_nested_tensors_have_dotted_names_and_other_values_are_left_out(legacy, tmp_path):
    one = np.ones(2, np.float32)
    value = {
        "state_dict": {"module.conv.weight": dense(one), "module.bn.bias": dense(2 * one)},
        "optimizer": {"state": {0: {"step": dense(np.float32(7).reshape(()))}},
                      "groups": [{"lr": 0.1, "params": [0]}, (dense(3 * one),)]},
        "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1), "none": None,
        "milestones": collections.Counter([1, 1, 2]), "size": Call("torch.Size", (2, 3)),
        "device": Call("torch.device", "cpu"), "seen": {1, 2}, "flag": True, "raw": b"abc",
    }  # fmt: skip
    tensors = read(save(tmp_path / "x", value, legacy=legacy)).tensors
    assert {name: array.sum() for name, array in tensors.items()} == {
        "state_dict.module.conv.weight": 2,
        "state_dict.module.bn.bias": 4,
        "optimizer.state.0.step": 7,
        "optimizer.groups.1.0": 6,
    }


@FORMATS
def test_numpy_arrays_in_a_checkpoint_are_read(legacy, tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(6, dtype=">i4").reshape(3, 2).T,
              "flags": np.array([True, False])}  # fmt: skip
    tensors = read(save(tmp_path / "x", arrays, legacy=legacy)).tensors
    assert all(np.array_equal(tensors[name], array) for name, array in arrays.items())


def test_parameters_are_read_as_their_tensors(tmp_path):
    data = np.ones((2, 3), np.float32)
    hooks = collections.OrderedDict()
    value = {
        "plain": Call("torch._utils._rebuild_parameter", dense(data), True, hooks),
        "more": Call("torch._utils._rebuild_parameter_with_state", dense(data), True, hooks, {}),
        "old": Call("torch._utils._rebuild_tensor", Storage(data), 0, (6,), (1,)),
    }
    tensors = read(save(tmp_path / "x", value)).tensors
    assert {name: array.shape for name, array in tensors.items()} == {
        "plain": (2, 3), "more": (2, 3), "old": (6,)
    }  # fmt: skip


def test_a_single_tensor_has_a_name(tmp_path):
    assert [*read(save(tmp_path / "x", dense(np.ones(2, np.float32)))).tensors] == ["tensor"]


@pytest.mark.parametrize("kind", STORAGES)
def test_big_endian_files_are_swapped(kind, tmp_path):
    array = some(STORAGES[kind])
    word = array.itemsize // 2 if array.dtype.kind == "c" else array.itemsize
    storage = Storage(array)
    storage.data = array.view(f"u{word}").byteswap().tobytes()
    value = {"a": tensor(storage, 0, (2, 3), (3, 1))}
    assert same(read(save(tmp_path / "x", value, order="big")).tensors["a"], array)


def test_views_of_storages_are_read(tmp_path):
    storage = Storage(np.arange(10, dtype=np.float32), view=("key", 4, 3))
    file = read(save(tmp_path / "x", {"a": tensor(storage, 1, (2,), (1,))}, legacy=True))
    assert file.tensors["a"].tolist() == [5, 6]
