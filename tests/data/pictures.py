"""A tiny ImageNet in TFDS's form: a few pictures of many sizes."""

import contextlib
import io
import json
import pathlib

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from configs import imagenet
from resnet_jax.data import datasets, sources
from resnet_jax.parallel import mesh as meshes
from resnet_jax.resolve import resolve
from tests import tiny

SIZES = {"train": 30, "validation": 11}
_FEATURES = "tensorflow_datasets.core.features"


def paint(number, height=None, width=None):
    """A smooth picture, uint8 (H, W, 3), different for each number."""
    random = np.random.default_rng(number)
    height = height or int(random.integers(40, 90))
    width = width or int(random.integers(40, 90))
    small = random.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, mode="RGB", kind="JPEG", **options):
    """Compresses a picture; JPEGs at quality 95."""
    written = io.BytesIO()
    quality = {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(image).convert(mode).save(written, kind, **(quality | options))
    return written.getvalue()


def example(image, label, name):
    """A tf.train.Example as TFDS writes it."""
    made = tf_example_pb2.Example()
    made.features.feature["image"].bytes_list.value.append(image)
    made.features.feature["label"].int64_list.value.append(label)
    made.features.feature["file_name"].bytes_list.value.append(name.encode())
    return made.SerializeToString()


def label_of(number):
    """The class of a training picture."""
    return number * 37 % 1000


def prepare(root, replaced=None, shards=2, sizes=SIZES, stored=None):
    """Writes imagenet2012 under `root`.

    Args:
      root: a TFDS data_dir.
      replaced: {number: encoded picture} to replace training pictures.
      shards: files per split.
      sizes: records per split.
      stored: {number: bytes} to replace whole training records.
    """
    folder = pathlib.Path(root) / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    infos = []
    for split, count in sizes.items():
        offset = 0 if split == "train" else 1000
        lengths = [len(part) for part in np.array_split(np.arange(count), shards)]
        number = 0
        for shard, length in enumerate(lengths):
            name = f"imagenet2012-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for _ in range(length):
                image = (replaced or {}).get(number) if split == "train" else None
                image = image or encode(paint(offset + number))
                record = example(image, label_of(offset + number), f"{split}_{number}.JPEG")
                other = (stored or {}).get(number) if split == "train" else None
                writer.write(record if other is None else other)
                number += 1
            writer.close()
        infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(length) for length in lengths],
            }
        )
    info = {"name": "imagenet2012", "version": "5.1.0", "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": infos}))
    image = {
        "dtype": "uint8",
        "encodingFormat": "jpeg",
        "shape": {"dimensions": ["-1", "-1", "3"]},
    }
    features = {
        "image": {"pythonClassName": f"{_FEATURES}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "1000"},
        },
        "file_name": {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}},
    }
    content = {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(content))
    return folder


def config(root, preset="paper", **overrides):
    """The config of a tiny run: 32 pixels, a CIFAR net of 8 layers; see tiny.config."""
    c = imagenet.get_config(preset)
    c.epochs, c.steps, c.batch_size = None, 5, 8
    c.model.family, c.model.stem, c.model.depth, c.model.width = "cifar", "cifar", 8, 0.25
    c.model.shortcut, c.model.bn_group, c.model.zero_init_residual = "A", 4, False
    c.model.dtype = "float32"
    c.data.dir, c.data.validation, c.data.workers = str(root), 4, 2
    c.data.image_size, c.data.scales = 32, (36, 60)
    c.schedule.name, c.schedule.warmup, c.schedule.rate_for_batch = "constant", "none", 0
    c.eval.every, c.eval.batch_size, c.eval.population_examples = 2, 4, 16
    c.eval.views, c.eval.short_side, c.eval.scales = ("center",), 36, (32, 48)
    c.checkpoint.every, c.log.every, c.log.tensorboard = 2, 1, False
    tiny.override(c, overrides)
    return c


def records(root, split="train"):
    """Opens a split."""
    train, test, _ = sources.open_records("imagenet2012", str(root))
    return train if split == "train" else test


@contextlib.contextmanager
def opened(root, devices=8, replicates=1, preset="paper", **overrides):
    """Opens the data under `root`; yields the resolved config's `data` section and the DataSet."""
    c = resolve(config(root, preset, **overrides))
    mesh = meshes.make_mesh(replicates, 0, 1, jax.devices()[:devices])
    with contextlib.closing(datasets.open_set(c.data, mesh)) as data:
        yield c.data, data
