"""Small archives in the formats of the publishers, and what is in them."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import scipy.io
from PIL import Image

from experiments.preparation.download import Published
from resnet_jax.data import sets
from tests.data import pictures

PER_FILE = 4  # records of each CIFAR batch, and images of each other split
SYNSETS = {"n01440764": 0, "n02105855": 230, "n01739381": 59, "n15075141": 999}
# Among the pictures of ImageNet that are not RGB JPEGs.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VALIDATION_CLASSES = [65, 970, 230, 809, 516]  # of the first pictures, as published


def draw(name, count, seed):
    """Returns images uint8 (N, H, W, C) and labels of the set's shape; labels differ."""
    known = sets.DATA_SETS[name]
    random = np.random.default_rng([seed, len(name)])
    images = random.integers(-9, 10, (count, *known.image_shape)).cumsum(1).cumsum(2) + 128
    # Flat areas and noise: PNG has other filters and matches for each.
    images = np.where(random.random((count, 1, 1, 1)) < 0.5, images, images // 40 * 40)
    labels = (np.arange(count) * 7 + seed) % known.num_classes
    return np.clip(images, 0, 255).astype(np.uint8), labels


def tar(path, members, mode="w"):
    """Writes {name: content} as a tar file; returns its path. A TarInfo may stand for a name."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def names(name, count):
    return "".join(f"{name} {number}\n" for number in range(count)).encode() + b"\n"


def planes(images):
    """Images as CIFAR stores them: all of red, then green, then blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar10(folder):
    batches = [f"data_batch_{n}.bin" for n in range(1, 6)]
    train = draw("cifar10", 5 * PER_FILE, 1)
    test = draw("cifar10", PER_FILE, 2)
    tables = [np.c_[labels.astype(np.uint8), planes(images)] for images, labels in (train, test)]
    parts = [part.tobytes() for part in np.split(tables[0], 5)]
    inside = "cifar-10-batches-bin"
    members = {f"{inside}/batches.meta.txt": names("kind", 10), f"{inside}/readme.html": b"<html>"}
    members |= {f"{inside}/{b}": part for b, part in zip(batches, parts, strict=True)}
    members[f"{inside}/test_batch.bin"] = tables[1].tobytes()
    tar(folder / "cifar-10-binary.tar.gz", members, "w:gz")
    return {"train": train, "test": test}


def cifar100(folder):
    inside, made = "cifar-100-binary", {}
    members = {
        f"{inside}/coarse_label_names.txt": names("group", 20),
        f"{inside}/fine_label_names.txt": names("kind", 100),
    }
    for seed, split in enumerate(("train", "test")):
        images, labels = made[split] = draw("cifar100", PER_FILE + seed, seed)
        table = np.c_[(labels % 20).astype(np.uint8), labels.astype(np.uint8), planes(images)]
        members[f"{inside}/{split}.bin"] = table.tobytes()
    tar(folder / "cifar-100-binary.tar.gz", members, "w:gz")
    return made


def idx(array):
    """An array of uint8 in the format of MNIST."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder, name="mnist"):
    made = {}
    for seed, (split, prefix) in enumerate({"train": "train", "test": "t10k"}.items()):
        images, labels = made[split] = draw(name, PER_FILE + seed, seed)
        for kind, array in {"images-idx3": images[..., 0], "labels-idx1": labels}.items():
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array.astype(np.uint8)), mtime=0))
    return made


def fashion_mnist(folder):
    return mnist(folder, "fashion_mnist")


def svhn_cropped(folder):
    made = {}
    for seed, split in enumerate(("train", "test", "extra")):
        images, labels = made[split] = draw("svhn_cropped", PER_FILE + seed, seed)
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        arrays = {"X": np.moveaxis(images, 0, -1), "y": digits}
        scipy.io.savemat(folder / f"{split}_32x32.mat", arrays, do_compression=True)
    return made


MAKERS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "svhn_cropped": svhn_cropped,
}


def imagenet(folder):
    """Writes both tar files; returns {split: {file name: (picture, label)}}."""
    train, members = {}, {}
    for synset, label in SYNSETS.items():
        inside = {}
        for number in (7, 12, 103):
            inside[f"{synset}_{number}.JPEG"] = pictures.encode(pictures.paint(label + number))
        if synset == CMYK[:9]:
            plane = np.dstack([pictures.paint(5, 60, 70), pictures.paint(6, 60, 70)[..., :1]])
            written = io.BytesIO()
            Image.fromarray(plane, "CMYK").save(written, "JPEG", quality=90)
            inside[CMYK] = written.getvalue()
        if synset == PNG[:9]:
            inside[PNG] = pictures.encode(pictures.paint(8), kind="PNG")
        tar(folder / "inner.tar", inside)
        members[f"{synset}.tar"] = (folder / "inner.tar").read_bytes()
        train |= {name: (content, label) for name, content in inside.items()}
    (folder / "inner.tar").unlink()
    tar(folder / TRAIN, members)
    validation = {
        f"ILSVRC2012_val_{n:08d}.JPEG": (pictures.encode(pictures.paint(n)), label)
        for n, label in enumerate(VALIDATION_CLASSES, start=1)
    }
    # The archive's own order is not that of the numbers.
    tar(folder / VALIDATION, {n: validation[n][0] for n in sorted(validation, reverse=True)})
    return {"train": train, "validation": validation}


def described(folder, url="http://localhost"):
    """Describes the files of a folder as if they were the published ones."""
    return {
        path.name: Published(
            f"{url}/{path.name}",
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.iterdir()
    }
