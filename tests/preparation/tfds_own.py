"""Prepares sets with TFDS and TensorFlow, from archives on this disk; see the Makefile.

    .venv-tensorflow/bin/python tests/preparation/tfds_own.py ARCHIVES OUT    # ARCHIVES/NAME/...

TFDS itself reads, encodes, sorts and writes everything. Three things are replaced: downloads;
MNIST's number of images; and the order of a record's features, which protobuf draws at random.
"""

import gzip
import pathlib
import sys
import tarfile
from unittest import mock

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.download import download_manager
from tensorflow_datasets.image_classification import mnist


def main(archives: pathlib.Path, out: pathlib.Path) -> None:
    example_serializer.ExampleSerializer.serialize_example = lambda self, example: (
        self.get_tf_example(example).SerializeToString(deterministic=True)
    )
    for given in sorted(archives.iterdir()):
        prepare(given, out)


def prepare(given: pathlib.Path, out: pathlib.Path) -> None:
    def local(url):
        return given / url.rpartition("/")[2]

    def extract(url):
        path = local(url)
        if path.name.endswith(".tar.gz"):
            folder = out / "extracted" / given.name
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            return folder
        plain = out / f"{given.name}-{path.name}"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return plain

    def each(function):
        def of(_, urls):
            if isinstance(urls, dict):
                return {key: function(url) for key, url in urls.items()}
            return function(urls)

        return of

    size = sum(path.stat().st_size for path in given.iterdir())
    is_manual = given.name == "imagenet2012"
    replaced = {
        "download": each(local),
        "download_and_extract": each(extract),
        "downloaded_size": 0 if is_manual else size,
        "manual_dir": given,
    }
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = images(given, "train"), images(given, "t10k")
    with mock.patch.multiple(download_manager.DownloadManager, **replaced):
        tfds.builder(given.name, data_dir=out, file_format="array_record").download_and_prepare()


def images(given: pathlib.Path, split: str) -> int:
    labels = given / f"{split}-labels-idx1-ubyte.gz"
    return len(gzip.decompress(labels.read_bytes())) - 8 if labels.exists() else 0


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
