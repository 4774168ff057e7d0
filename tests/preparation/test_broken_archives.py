"""Cut, altered and hostile archives are refused in one sentence, and nothing of them is written."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io

from experiments.preparation import archives, published, small_sets
from resnet_jax.errors import UserError
from tests import tiny
from tests.preparation import archives_of

INSIDE = "cifar-10-batches-bin"


def members_of(path):
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


@pytest.fixture
def cifar(tmp_path):
    """The path of a small cifar-10-binary.tar.gz."""
    archives_of.cifar10(tmp_path)
    return tmp_path / "cifar-10-binary.tar.gz"


def read(path):
    return small_sets.READERS["cifar10"]({"cifar-10-binary.tar.gz": path})


def refusal(path):
    """Reads CIFAR-10 from an archive; returns the sentence that refuses it."""
    with pytest.raises(UserError) as refused:
        read(path)
    text = str(refused.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ("../outside", "'../outside' leads out of the archive's folder"),
        (f"{INSIDE}/../../outside", "leads out of the archive's folder"),
        ("/tmp/outside", "leads out of the archive's folder"),
        (special(f"{INSIDE}/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (special(f"{INSIDE}/link", tarfile.LNKTYPE, "/etc/passwd"), "is a link or a device"),
        (special(f"{INSIDE}/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (special(f"{INSIDE}/disk", tarfile.BLKTYPE), "is a link or a device"),
        (f"{INSIDE}/test_batch.bin", "holds cifar-10-batches-bin/test_batch.bin twice"),
    ],
)
def test_a_hostile_member_is_refused(member, sentence, cifar, tmp_path):
    members = members_of(cifar)
    read(cifar)
    names = [f"{INSIDE}/link", f"{INSIDE}/pipe", f"{INSIDE}/disk"]
    assert not names & members.keys()
    content = b"" if isinstance(member, tarfile.TarInfo) else b"hostile"
    with tarfile.open(cifar, "w:gz") as archive:
        for name, inside in [*members.items(), (member, content)]:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(inside)
            archive.addfile(info, io.BytesIO(inside))
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    assert sentence in refusal(cifar)
    assert {path for path in tmp_path.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_cut_archive_is_refused(share, cifar):
    content = cifar.read_bytes()
    cifar.write_bytes(content[: int(share * len(content))])
    assert "cut short" in refusal(cifar)


@pytest.mark.parametrize("lost", ["batches.meta.txt", "data_batch_3.bin", "test_batch.bin"])
def test_a_missing_member_is_named(lost, cifar):
    members = members_of(cifar)
    del members[f"{INSIDE}/{lost}"]
    archives_of.tar(cifar, members, "w:gz")
    assert f"holds no {INSIDE}/{lost}" in refusal(cifar)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("data_batch_1.bin", bytes(3073 * 10_001), "has 30,733,073 bytes; allowed are 30,730,000"),
        ("test_batch.bin", bytes(3073 * 4 + 1), "test has 12,293 bytes, not whole records"),
        ("test_batch.bin", b"", "test has 0 bytes, not whole records"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "a label of test is 10; allowed is up to 9"),
        (
            "batches.meta.txt",
            b"cat\ndog\n",
            "batches.meta.txt has 2 names, 2 different ones, for 10 classes",
        ),
        (
            "batches.meta.txt",
            b"a\n" * 10,
            "batches.meta.txt has 10 names, 1 different ones, for 10 classes",
        ),
        ("readme.html", bytes(400 << 20), "holds more than the"),
    ],
)
def test_a_wrong_content_is_refused(name, content, sentence, cifar):
    archives_of.tar(cifar, members_of(cifar) | {f"{INSIDE}/{name}": content}, "w:gz")
    assert sentence in refusal(cifar)


def test_headers_that_decompress_without_end_are_refused(cifar):
    # A pax header is read into memory before a member is.
    member = special("bomb", tarfile.XHDTYPE)
    archives_of.tar(cifar, {member: bytes(1 << 28)}, "w:gz")
    assert cifar.stat().st_size < 1 << 20
    assert "holds more than the" in refusal(cifar)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cut short"),
        (b"no archive at all", "damaged, cut short or no such archive"),
        (gzip.compress(b"not a tar file", mtime=0), "damaged, cut short or no such archive"),
        (pickle.dumps({"data": 1}), "damaged, cut short or no such archive"),
    ],
)
def test_other_files_are_refused(content, sentence, cifar):
    cifar.write_bytes(content)
    assert sentence in refusal(cifar)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw[:-1], "is not a whole idx file"),
        (lambda raw: raw + b"\0", "is not a whole idx file"),
        (lambda raw: raw[:3] + b"\2" + raw[4:], "is not a whole idx file"),
        (lambda raw: raw[:16], "is not a whole idx file"),
        (lambda raw: raw[:10], "is not a whole idx file"),
        (lambda raw: raw[:4] + bytes(4) + raw[8:], "is not a whole idx file"),
        (lambda raw: bytes(1 << 27), "holds more than the 47,040,016 bytes that belong in it"),
    ],
)
def test_a_wrong_idx_file_is_refused(change, sentence, tmp_path):
    archives_of.mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    paths = {p.name: p for p in tmp_path.iterdir()}
    with pytest.raises(UserError) as refused:
        small_sets.READERS["mnist"](paths)
    assert str(refused.value).startswith(str(path))
    assert sentence in str(refused.value)


def test_labels_and_images_must_be_as_many(tmp_path):
    archives_of.mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(archives_of.idx(np.zeros(3, np.uint8))))
    paths = {p.name: p for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="has 3 labels for 5 images"):
        small_sets.READERS["mnist"](paths)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "has other arrays than X"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((3, 1))}, "has other arrays"),
        ({"X": np.zeros((32, 32, 2), np.uint8), "y": np.ones((2, 1))}, "has other arrays"),
        (
            {"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))},
            "has X of double; allowed is uint8",
        ),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.uint8([[1], [11]])}, "outside 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros((2, 1))}, "outside 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 73_258), np.uint8), "y": np.ones((73_258, 1))}, "has other"),
        (b"not a MATLAB file", "is damaged, cut short or no MATLAB file"),
        (pickle.dumps({"X": 1}), "is damaged, cut short or no MATLAB file"),
    ],
)
def test_a_wrong_matlab_file_is_refused(arrays, sentence, tmp_path):
    archives_of.svhn_cropped(tmp_path)
    path = tmp_path / "train_32x32.mat"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        scipy.io.savemat(path, arrays, do_compression=True)
    with pytest.raises(UserError) as refused:
        small_sets.READERS["svhn_cropped"]({p.name: p for p in tmp_path.iterdir()})
    assert str(refused.value).startswith(str(path))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_matlab_file_is_refused(share, tmp_path):
    archives_of.svhn_cropped(tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cut short|other arrays"):
        small_sets.READERS["svhn_cropped"]({p.name: p for p in tmp_path.iterdir()})


def test_an_unreadable_archive_is_named(cifar, tmp_path):
    with pytest.raises(UserError, match="absent cannot be read: No such file"):
        archives.sha256(tmp_path / "absent")
    with pytest.raises(UserError, match="absent cannot be read: No such file"):
        list(archives.members(tmp_path / "absent"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        archives.read_gzip(tmp_path, 10)


def test_the_program_refuses_in_one_sentence(cifar, tmp_path):
    cifar.write_bytes(cifar.read_bytes()[:5000])
    out = tmp_path / "out"
    done = tiny.program(
        "experiments.prepare", "cifar10", f"--out={out}", f"--from={cifar}", "--noverify"
    )
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: {cifar} is damaged, cut short")
    assert not (out / published.IMAGENET).exists()
    assert not list(out.glob("*/*/dataset_info.json"))
