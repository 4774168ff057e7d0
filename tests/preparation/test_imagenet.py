"""ImageNet's two tar files are read in place; a killed preparation resumes."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from experiments.preparation import imagenet, published
from resnet_jax.data import jpeg, sources
from resnet_jax.errors import UserError
from tests import tiny
from tests.data import pictures
from tests.preparation import archives_of


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Returns the folder of the archives and what is in them."""
    folder = tmp_path_factory.mktemp("archives")
    return folder, archives_of.imagenet(folder)


@pytest.fixture(scope="module")
def prepared(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("tfds")
    done = prepare(given[0], out)
    assert done.returncode == 0, done.stderr
    return out, done


def prepare(folder, out, *flags):
    return tiny.program(
        "experiments.prepare", "imagenet2012", f"--out={out}", f"--from={folder}", "--noverify",
        *flags,
    )  # fmt: skip


def copy_of(given, tmp_path):
    """Returns paths of the archives, in a folder of their own."""
    paths = {name: tmp_path / name for name in (archives_of.TRAIN, archives_of.VALIDATION)}
    for name, path in paths.items():
        path.write_bytes((given[0] / name).read_bytes())
    return paths


def test_every_picture_has_its_label_and_its_bytes(given, prepared):
    out, done = prepared
    train, validation, note = sources.open_records("imagenet2012", str(out))
    for split, records in {"train": train, "validation": validation}.items():
        expected = given[1][split]
        found = {records[n].name: records[n] for n in range(len(records))}
        assert found.keys() == expected.keys()
        for name, (content, label) in expected.items():
            assert found[name].label == label
            if name not in (archives_of.CMYK, archives_of.PNG):
                assert found[name].image == content
    assert note == "prepared from archives that differ from the published ones"
    assert done.stdout.splitlines()[0] == (
        f"{out / 'imagenet2012'}: {len(train)} training and {len(validation)} test pictures."
    )


@pytest.mark.parametrize("name", [archives_of.CMYK, archives_of.PNG])
def test_pictures_that_tfds_converts_are_rgb_jpegs_of_the_same_picture(name, given, prepared):
    train, _, _ = sources.open_records("imagenet2012", str(prepared[0]))
    (image,) = (train[n].image for n in range(len(train)) if train[n].name == name)
    before, _ = given[1]["train"][name]
    assert not jpeg.is_rgb(before)
    assert jpeg.is_rgb(image)
    difference = jpeg.decode(image).astype(int) - jpeg.decode(before)
    assert np.abs(difference).mean() < 3
    with Image.open(io.BytesIO(image)) as opened:
        assert opened.info["dpi"] == (300, 300)


def test_a_killed_preparation_resumes_and_other_archives_start_again(given, prepared, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    copy_of(given, folder)
    first = prepare(folder, tmp_path / "out")
    target = tmp_path / "out" / "imagenet2012" / "5.1.0"
    whole = {path.name: path.read_bytes() for path in target.iterdir()}
    train, validation = sorted(target.glob("imagenet2012-*"))
    made_from = published_from(folder)
    # As if killed during the second file.
    for path in target.iterdir():
        if path != train:
            path.unlink()
    (target / f".{validation.name}.tmp").write_bytes(b"half")
    (target / "unfinished.json").write_text(f'{{"made_from": "{made_from}"}}')
    stamp = train.stat().st_mtime_ns
    with pytest.raises(UserError, match="holds no imagenet2012"):
        sources.require("imagenet2012", str(tmp_path / "out"))
    second = prepare(folder, tmp_path / "out")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert train.stat().st_mtime_ns == stamp
    assert {path.name: path.read_bytes() for path in target.iterdir()} == whole
    # Files that were made from another archive are written again.
    (target / "dataset_info.json").unlink()
    (target / "unfinished.json").write_text('{"made_from": "another"}')
    train.write_bytes(b"of another archive")
    third = prepare(folder, tmp_path / "out")
    assert third.returncode == 0, third.stderr
    assert {path.name: path.read_bytes() for path in target.iterdir()} == whole


def published_from(folder):
    """Returns the digest of what a data set is made from."""
    digests = []

    def note(*args, made_from, **more):
        digests.append(made_from)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published.writer, "write", note)
        files = dict.fromkeys((archives_of.TRAIN, archives_of.VALIDATION))
        paths = {name: folder / name for name in files}
        published.prepare("imagenet2012", None, folder, files, paths, is_published=False)
    return digests[0]


def changed_size(folder):
    path = folder / archives_of.VALIDATION
    path.write_bytes(path.read_bytes() + bytes(512))


def test_what_a_set_is_made_from_changes_with_the_archives(given, tmp_path):
    copy_of(given, tmp_path)
    before = published_from(tmp_path)
    assert published_from(tmp_path) == before
    changed_size(tmp_path)
    assert published_from(tmp_path) != before


def read(paths):
    return imagenet.read(paths)


@pytest.mark.parametrize("archive", [archives_of.TRAIN, archives_of.VALIDATION])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_cut_archive_is_refused(archive, share, given, tmp_path):
    paths = copy_of(given, tmp_path)
    read(paths)
    content = paths[archive].read_bytes().rstrip(b"\0")  # tar files end with zeros
    paths[archive].write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"{archive} is (damaged|cut short)"):
        read(paths)


@pytest.mark.parametrize("archive", [archives_of.TRAIN, archives_of.VALIDATION])
def test_an_archive_cut_between_members_is_refused(archive, given, tmp_path):
    paths = copy_of(given, tmp_path)
    with tarfile.open(paths[archive]) as tar:
        last = tar.getmembers()[-1]
    content = paths[archive].read_bytes()
    paths[archive].write_bytes(content[: last.offset])
    with pytest.raises(UserError, match="is damaged or cut short at byte"):
        read(paths)


def test_a_damaged_header_is_not_taken_for_the_end(given, tmp_path):
    paths = copy_of(given, tmp_path)
    with tarfile.open(paths[archives_of.VALIDATION]) as tar:
        third = tar.getmembers()[2]
    with open(paths[archives_of.VALIDATION], "r+b") as file:
        file.seek(third.offset)
        file.write(b"\xff" * 512)
    with pytest.raises(UserError, match=f"is damaged or cut short at byte {third.offset:,}"):
        read(paths)


def inner(folder, members):
    """The bytes of a class's tar file."""
    return archives_of.tar(folder / "inner.tar", members).read_bytes()


PICTURE = pictures.encode(pictures.paint(1))
LINK = tarfile.TarInfo("n01440764_9.JPEG")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"


@pytest.mark.parametrize(
    ("outer", "members", "sentence"),
    [
        ("n01440764.zip", {"n01440764_1.JPEG": PICTURE}, "n01440764.zip is not the tar file of"),
        ("n99999999.tar", {"n99999999_1.JPEG": PICTURE}, "n99999999.tar is not the tar file of"),
        ("../n01440764.tar", {"n01440764_1.JPEG": PICTURE}, "leads out of the archive's folder"),
        ("n01440764.tar", {"n02105855_1.JPEG": PICTURE}, "does not belong in n01440764.tar"),
        ("n01440764.tar", {"../n01440764_1.JPEG": PICTURE}, "leads out of the archive's folder"),
        ("n01440764.tar", {LINK: b""}, "is a link or a device"),
        ("n01440764.tar", {}, "holds no picture"),
    ],
)
def test_a_strange_training_archive_is_refused(outer, members, sentence, given, tmp_path):
    paths = copy_of(given, tmp_path)
    archives_of.tar(paths[archives_of.TRAIN], {outer: inner(tmp_path, members)})
    with pytest.raises(UserError) as refused:
        read(paths)
    assert str(refused.value).startswith(str(paths[archives_of.TRAIN]))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00050001.JPEG", "n01440764_1.JPEG", "a.JPEG"])
def test_a_strange_validation_archive_is_refused(name, given, tmp_path):
    paths = copy_of(given, tmp_path)
    archives_of.tar(paths[archives_of.VALIDATION], {name: PICTURE})
    with pytest.raises(UserError, match=f"{name} is not a picture of this split"):
        read(paths)


def test_a_picture_that_occurs_twice_is_refused(given, tmp_path):
    paths = copy_of(given, tmp_path)
    name = "ILSVRC2012_val_00000001.JPEG"
    with tarfile.open(paths[archives_of.VALIDATION], "a") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="holds a picture twice"):
        read(paths)


def test_a_converted_picture_that_cannot_be_decoded_is_named(given, tmp_path):
    paths = copy_of(given, tmp_path)
    damaged = inner(tmp_path, {archives_of.PNG: b"no picture"})
    archives_of.tar(paths[archives_of.TRAIN], {f"{archives_of.PNG[:9]}.tar": damaged})
    with pytest.raises(UserError, match=f"{archives_of.PNG} cannot be decoded"):
        read(paths)


def test_an_archive_must_be_there(given, tmp_path):
    paths = copy_of(given, tmp_path)
    paths[archives_of.VALIDATION].unlink()
    done = prepare(tmp_path, tmp_path / "out")
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert f"has no {archives_of.VALIDATION}; allowed are a folder with" in sentence
