"""Damaged and hostile files of torch.save are refused in one sentence, and run no code."""

import functools
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from tests.weight_files import torch_writer
from tests.weight_files.refused import refusal
from tests.weight_files.torch_writer import Call, Storage, dense, save, tensor

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
ONES = np.ones(4, np.float32)


def calling(text):
    """Pickles that create a file if they are loaded as Python loads them."""
    touch = f"touch {text}"
    opened = f"__import__('os').system({touch!r})"
    quoted = {b"touch": touch.encode(), b"code": repr(opened).encode()}
    return {
        "posix.system": b"cposix\nsystem\n(V%(touch)s\ntR." % quoted,
        "os.system": b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\n(V%(touch)s\ntRs." % quoted,
        "builtins.eval": b"cbuiltins\neval\n(S%(code)s\ntR." % quoted,
        "__builtin__.eval": b"c__builtin__\neval\n(S%(code)s\ntR." % quoted,
        "builtins.exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93(S%(code)s\ntR." % quoted,
        "builtins.getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\nVsystem\ntR.",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\nV%(touch)s\ntR)R." % quoted,
        "collections.OrderedDict.fromkeys": (
            b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93)R."
        ),
        "torch.load": b"ctorch\nload\n(V%(touch)s\ntR." % quoted,
        "torch.hub.load": b"ctorch.hub\nload\n(V%(touch)s\ntR." % quoted,
        "torchvision.models.resnet.ResNet": b"\x80\x02ctorchvision.models.resnet\nResNet\n)\x81}b.",
        "subprocess.Popen": b"(V%(touch)s\nisubprocess\nPopen\n." % quoted,
    }


@FORMATS
@pytest.mark.parametrize("named", calling(""))
def test_code_is_never_run(named, legacy, tmp_path):
    ran = tmp_path / "ran"
    path = save(tmp_path / "x", pickle=calling(ran)[named], legacy=legacy)
    text = refusal(path)
    assert not ran.exists()
    if named != "subprocess.Popen":  # an opcode that PyTorch never writes
        assert text == (
            f"names {named}, but only tensors are read, never code; save the model's state_dict() "
            "instead."
        )


class _Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_the_payload_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(_Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@FORMATS
def test_code_inside_a_tensor_is_not_run(legacy, tmp_path):
    ran = tmp_path / "ran"
    inside = tensor(Storage(ONES), 0, (4,), _Runs(ran))
    values = [
        {"a": dense(ONES), "b": _Runs(ran)},
        {"a": inside},
        [[[_Runs(ran)]]],
        Call("collections.OrderedDict", _Runs(ran)),
        Call("torch._utils._rebuild_parameter", Call("torch.Size", _Runs(ran)), 1, 2),
    ]
    for value in values:
        assert "posix.system" in refusal(save(tmp_path / "x", value, legacy=legacy))
    assert not ran.exists()


def test_names_cannot_write_to_the_terminal(tmp_path):
    content = b"\x80\x04\x8c\x09os\n\x1b[2J\xc2\x9b\x8c\x06system\x93)R."
    assert refusal(save(tmp_path / "x", pickle=content)).startswith(r"names os\n\x1b[2J\x9b.system")


@pytest.mark.parametrize(
    ("function", "kind"),
    [("_rebuild_qtensor", "quantised"), ("_rebuild_sparse_tensor", "sparse"),
     ("_rebuild_sparse_csr_tensor", "sparse"), ("_rebuild_nested_tensor", "nested"),
     ("_rebuild_meta_tensor_no_storage", "data-less")],
)  # fmt: skip
def test_other_tensors_are_refused_by_name(function, kind, tmp_path):
    path = save(tmp_path / "x", {"a": Call(f"torch._utils.{function}", 1)})
    assert refusal(path).startswith(f"holds a {kind}")


def test_quantised_storages_are_refused_by_name(tmp_path):
    storage = Storage(ONES.view(np.uint8), kind="torch.QInt8Storage")
    path = save(tmp_path / "x", {"a": tensor(storage, 0, (4,), (1,))})
    assert refusal(path).startswith("holds a quantised tensor (torch.QInt8Storage)")


def test_lazily_conjugated_tensors_are_refused(tmp_path):
    lazy = tensor(Storage(ONES), 0, (4,), (1,), "_rebuild_tensor_v2", {"neg": True})
    assert "resolve_neg()" in refusal(save(tmp_path / "x", {"a": lazy}))


# The storage has 4 elements.
EXTENTS = {
    "too long": (0, (5,), (1,)), "offset": (1, (4,), (1,)), "stride": (0, (2,), (4,)),
    "offset of a scalar": (4, (), ()), "negative offset": (-1, (2,), (1,)),
    "negative stride": (3, (4,), (-1,)), "negative size": (0, (-4,), (1,)),
    "overflow": (2**63, (2,), (2**63,)), "huge": (0, (2**40, 2**40), (0, 0)),
    "huge and empty": (0, (2**62, 2**62, 0), (0, 0, 0)), "ranks": (0, (2, 2), (1,)),
    "dimensions": (0, (1,) * 100, (1,) * 100), "float": (0, (2.0,), (1,)),
    "bool": (True, (2,), (1,)), "text": (0, "22", (1,)), "none": (None, (2,), (1,)),
}  # fmt: skip


@FORMATS
@pytest.mark.parametrize("extents", EXTENTS.values(), ids=EXTENTS)
def test_extents_beyond_the_storage_are_refused(extents, legacy, tmp_path):
    refusal(save(tmp_path / "x", {"a": tensor(Storage(ONES), *extents)}, legacy=legacy))


@FORMATS
@pytest.mark.parametrize("claim", [3, 5, 2**40, -1, 4.0, "4"])
def test_a_storage_must_have_the_size_that_it_claims(claim, legacy, tmp_path):
    value = {"a": tensor(Storage(ONES, claim=claim), 0, (2,), (1,))}
    assert refusal(save(tmp_path / "x", value, legacy=legacy)).startswith("is damaged: ")


@pytest.mark.parametrize("view", [("k", 2, 3), ("k", -1, 2), ("k", 2**70, 1), "kkk", (1,)])
def test_a_view_beyond_its_storage_is_refused(view, tmp_path):
    value = {"a": tensor(Storage(ONES, view=view), 0, (1,), (1,))}
    refusal(save(tmp_path / "x", value, legacy=True))


def op(text):
    return struct.pack("<BI", ord("X"), len(text)) + text


def doubling(levels):
    """A pickle of lists that hold the list below them twice."""
    return b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(levels)) + b"."


DEEP = 100_000
PICKLES = {
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep tuples": b")" + b"\x85" * DEEP + b".",
    "a deep tuple as a key": b"})" + b"\x85" * DEEP + b"Ns.",
    "a deep tuple as a pair's key": (
        b"ccollections\nOrderedDict\n](" + b")" + b"\x85" * DEEP + b"Nta\x85R."
    ),
    "deep marks": b"(" * DEEP + b".",
    "deep dicts": b"}" + b"X\1\0\0\0a}" * 1000 + b"s" * 1000 + b".",
    "a list in itself": b"]q\0h\0a.",
    "lists that double": doubling(30),
    "lists that double, deep": doubling(99),
    "a memo in the far": b"Nr\xff\xff\xff\x7f.",
    "a missing memo": b"h\x05.",
    "text beyond the end": b"X\xff\xff\xff\x7fabc.",
    "text of 2**62 bytes": b"\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "bytes of 2**40 bytes": b"\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "a negative length": b"T\xff\xff\xff\xffabc.",
    "an integer of many digits": b"}I" + b"9" * 9999 + b"\nNs.",
    "no end": b"}",
    "an empty stack": b".",
    "an unknown opcode": b"\xff.",
    "an extension": b"\x82\x01.",
    "a persistent id as text": b"Pabc\n.",
    "a persistent id of a module": b"(" + op(b"module") + b"NNNNtQ.",
    "a persistent id that is a number": b"K\x01Q.",
    "a storage without a type": b"(" + op(b"storage") + b"N" + op(b"0") + b"NK\x04tQ.",
    "a call of a number": b"K\x01)R.",
    "a call of a dtype": b"ctorch\nfloat32\n)R.",
    "a state for a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\1\0\0\0aK\1sb.",
    "a tensor without a storage": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    "a tensor without arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "items of no dict": b"]NNs.",
    "items of no list": b"}Na.",
    "odd items": b"}(Nu.",
    "a NumPy array without a state": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
    "a number alone": b"K\x01.",
    "no tensors": b"}.",
}  # fmt: skip


@FORMATS
@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_damaged_pickles_are_refused(content, legacy, tmp_path):
    refusal(save(tmp_path / "x", pickle=content, legacy=legacy))


def test_bytes_that_repeat_themselves_are_refused(tmp_path):
    arguments = op(b"a" * 100_000) + op(b"latin1") + b"\x86q\1"
    content = b"]c_codecs\nencode\nq\0" + arguments + b"Ra" + b"h\0h\1Ra" * 1000 + b"."
    assert "repeats itself" in refusal(save(tmp_path / "x", pickle=content))


def test_numpy_arrays_of_objects_are_refused(tmp_path):
    path = save(tmp_path / "x", {"a": np.array([1, None], dtype=object)})
    assert "which are no numbers" in refusal(path)


def test_compressed_records_are_refused(tmp_path):
    value = {"a": dense(np.zeros(10_000_000, np.float32))}
    path = save(tmp_path / "x", value, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert refusal(path) == "has compressed records, which torch.save never writes."


def test_records_that_claim_more_than_the_file_are_refused(tmp_path):
    path = save(tmp_path / "x", {"a": dense(ONES)})
    content = bytearray(path.read_bytes())
    record = content.index(b"PK\x01\x02")  # the first in the directory
    content[record + 20 : record + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    assert refusal(path) == "is damaged: its records are larger than the file."


@pytest.mark.parametrize(
    ("records", "words"),
    [(["a/data.pkl", "b/data.pkl"], "must hold one NAME/data.pkl"),
     (["a/b/data.pkl"], "must hold one NAME/data.pkl"),
     (["a/data.pkl", "a/constants.pkl"], "is a TorchScript program"),
     (["a/data.pkl", "a/byteorder"], "its byte order is b'}.'; allowed are little and big"),
     (["model.weights.h5", "config.json"], "is damaged, cut short or no keras file (Unable"),
     (["readme.txt"], "is a zip file of no known format; allowed are safetensors, PyTorch")],
)  # fmt: skip
def test_other_zip_files_are_refused(records, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for record in records:
            archive.writestr(record, b"}.")
    assert words in refusal(tmp_path / "x")


def test_an_unknown_protocol_is_refused(tmp_path):
    path = torch_writer.save_legacy(tmp_path / "x", {"a": dense(ONES)}, version=1002)
    assert refusal(path) == "is of protocol 1002; allowed is 1001."


def test_two_tensors_of_one_name_are_refused(tmp_path):
    value = {"a.b": dense(ONES), "a": {"b": dense(ONES)}}
    assert refusal(save(tmp_path / "x", value)) == "holds two tensors of the name a.b."


def test_a_missing_storage_is_refused(tmp_path):
    path = save(tmp_path / "x", {"a": dense(ONES)})
    with zipfile.ZipFile(path) as archive:
        kept = {n: archive.read(n) for n in archive.namelist() if "/data/" not in n}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    assert refusal(path).startswith("is damaged")


def test_names_that_multiply_are_refused(tmp_path):
    row = functools.reduce(lambda inner, _: {"k" * 1000: inner}, range(30), [1] * 1000)
    path = save(tmp_path / "x", [row] * 20_000)
    assert refusal(path).startswith("holds more than 10,000,000 values")
