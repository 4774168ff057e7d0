"""The input pipeline of resnet_jax.data.streaming, written with tf.data and with Pillow."""

import io
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from resnet_jax.data import crops, order
from resnet_jax.data.records import Records

if TYPE_CHECKING:
    import tensorflow as tf

_AHEAD = 3
_DCT = "INTEGER_ACCURATE"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
            "area": Image.Resampling.BOX}  # fmt: skip


def tf_data(
    records: Records, config: ConfigDict, batch_size: int, scratch: str
) -> "Iterator[tuple[tf.Tensor, tf.Tensor]]":
    """Yields uint8 batches of a `data` section's crops, with tf.data.

    It reads a TFRecord copy in `scratch`, since tf.data cannot read array_record. tf.data tunes the
    parallel calls itself and has one thread per core. The accurate inverse DCT gives the same
    pixels as the other programs; TensorFlow's default is less accurate.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import tensorflow as tf

    path = str(pathlib.Path(scratch) / "pictures.tfrecord")
    _write_tfrecord(records, path)
    size = config.image_size

    def parse(record: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        kinds = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(record, kinds)
        return example["image"], tf.cast(example["label"], tf.int32)

    def scaled(record: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        encoded, label = parse(record)
        image = tf.image.decode_jpeg(encoded, channels=3, dct_method=_DCT)
        low, high = config.scales
        short = tf.random.uniform([], low, high + 1, tf.int32)
        shape = tf.shape(image)[:2]
        resized = shape * short // tf.reduce_min(shape)
        image = tf.image.resize(image, resized, config.resample)
        image = tf.image.random_crop(image, [size, size, 3])
        return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8), label

    def random_resized(record: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        encoded, label = parse(record)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4]),
            area_range=config.area,
            aspect_ratio_range=config.aspect,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        # Decodes only the window: tf.data's fastest way.
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=_DCT)
        image = tf.image.resize(image, [size, size], config.resample)
        return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8), label

    crop = scaled if config.crop == "scale" else random_resized
    pictures = tf.data.TFRecordDataset(path).repeat()
    pictures = pictures.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(pictures.batch(batch_size, drop_remainder=True).prefetch(_AHEAD))


def _write_tfrecord(records: Records, path: str) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(path) as writer:
        for number in range(len(records)):
            record = records[number]
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[record.image])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[record.label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def pillow(
    records: Records, config: ConfigDict, batch_size: int, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields uint8 batches of a `data` section's crops, with Pillow in threads."""
    crop, size = crops.make_crop(config), config.image_size

    def fill(number: int, draws: np.ndarray, out: np.ndarray) -> int:
        record = records[number % len(records)]
        with Image.open(io.BytesIO(record.image)) as image:
            box = crop.box(image.height, image.width, draws.tolist())
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            rgb = image.convert("RGB")
            out[...] = np.asarray(rgb.resize((size, size), _FILTERS[config.resample], edges))
        return record.label

    with ThreadPoolExecutor(threads) as pool:

        def begin(step: int) -> tuple[np.ndarray, Iterator[int]]:
            images = np.empty((batch_size, size, size, 3), np.uint8)
            draws = crops.draw(0, order.TRAIN, step, batch_size, crop.draws)
            numbers = range(step * batch_size, (step + 1) * batch_size)
            return images, pool.map(fill, numbers, draws, images)

        pending = [begin(step) for step in range(_AHEAD)]
        for step in range(_AHEAD, 10**9):
            images, labels = pending.pop(0)
            yield images, np.array(list(labels), np.int32)
            pending.append(begin(step))
