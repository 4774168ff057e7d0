"""Writes a copy of a streamed data set with smaller pictures, which is faster to train from.

    python -m experiments.shrink --data_dir=TFDS_DATA_DIR --out=SMALL [--short_side=256]

Train from the copy with --config.data.dir=SMALL. It has the same pictures in the same order, so
each step of a run sees the same ones. Pictures with a longer short side are reduced and
recompressed; pictures that are not RGB JPEGs are recompressed. All others are copied byte by byte,
as are those too long for a JPEG. Every picture is decoded strictly: those that fail, or that
libjpeg warns about, are listed by name. An unreadable record or an invalid label stops the program.
The same command resumes an unfinished copy.
"""

import dataclasses
import functools
import io
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from absl import flags, logging
from PIL import Image

from experiments.cli import command_line, new_files
from resnet_jax.allowed import check_choice
from resnet_jax.data import jpeg, sets, sources
from resnet_jax.data.records import Records, Shard, write_shard
from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs.progress import Bars
from resnet_jax.runs.storage import Json, read_json, write_bytes, write_json

_NAME = flags.DEFINE_string("name", "imagenet2012", "The data set; see data.name.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "The TFDS data_dir to read; see data.dir.")
_OUT = flags.DEFINE_string("out", None, "The TFDS data_dir to write; created if it does not exist.")
_SHORT_SIDE = flags.DEFINE_integer("short_side", 256, "Short side of reduced pictures, in pixels.")
_QUALITY = flags.DEFINE_integer("quality", 90, "Quality of recompressed JPEGs, up to 95.")

_LONGEST = 65500  # pixels: the longest side of a JPEG that libjpeg writes
_TALLY = "{}.tally.json"  # beside a finished shard


@dataclasses.dataclass
class Tally:
    """Counts over some pictures of how they were copied."""

    pictures: int = 0
    reduced: int = 0
    converted: int = 0  # to RGB JPEGs
    bytes_before: int = 0
    bytes_after: int = 0
    squared_error: float = 0.0  # of recompression: the mean over pixels, summed over pictures
    compressed: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)
    doubtful: list[str] = dataclasses.field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        """Sums every count."""
        ours, theirs = vars(self), vars(other)
        return Tally(**{key: ours[key] + theirs[key] for key in ours})

    def __str__(self) -> str:
        """Returns the counts as a sentence."""
        share = self.bytes_after / self.bytes_before
        text = (
            f"{self.pictures:,} pictures, {self.reduced:,} reduced: "
            f"{_megabytes(self.bytes_before)} became {_megabytes(self.bytes_after)} ({share:.0%})"
        )
        if self.converted:
            text += f"; {self.converted:,} converted to RGB JPEGs"
        if self.compressed:
            noise = 10 * math.log10(255**2 * self.compressed / max(self.squared_error, 1e-9))
            text += f"; PSNR after recompression {noise:.1f} dB"
        if self.damaged:
            text += f"; cannot be decoded: {', '.join(self.damaged)}"
        if self.doubtful:
            text += f"; decoded with warnings: {', '.join(self.doubtful)}"
        return f"{text}."


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    name, out = _NAME.value, new_files.folder(_OUT).absolute()
    check_choice("--name", name, [n for n, facts in sets.DATA_SETS.items() if not facts.resident])
    for flag, low, high in ((_SHORT_SIDE, 32, 4096), (_QUALITY, 50, 95)):
        if not low <= flag.value <= high:
            raise UserError(f"--{flag.name}={flag.value}; allowed is from {low} to {high}.")
    folder, info = sources.folder_and_info(name, _DATA_DIR.value)
    if "short_side" in read_json(folder / sources.PREPARED):
        raise UserError(f"{folder} is itself a prepared copy; give the data set that TFDS made.")
    target = out / name / folder.name
    if target == folder:
        raise UserError(f"--out={out} is the folder of the original data set; give another one.")
    try:
        tallies = _prepare(folder, info, target)
    except OSError as e:
        raise RunError(f"{target} cannot be written: {e.strerror or e}.") from e
    for split, tally in tallies.items():
        print(f"{split}: {tally}")
    print(f"Train from it with --config.data.dir={out}")
    return 0


def _prepare(folder: pathlib.Path, info: Json, target: pathlib.Path) -> dict[str, Tally]:
    settings = {"short_side": _SHORT_SIDE.value, "quality": _QUALITY.value}
    note = (
        f"copies of the pictures reduced to a short side of {settings['short_side']} pixels, JPEG "
        f"quality {settings['quality']}"
    )
    splits = sources.open_records(_NAME.value, _DATA_DIR.value)[:2]
    target.mkdir(parents=True, exist_ok=True)
    facts_file = target / sources.PREPARED
    facts = settings | {"note": note}
    present = read_json(facts_file)
    if present and present != facts:
        raise UserError(
            f"{target} holds a copy made with different settings ({present}); give another --out "
            "or the same settings."
        )
    write_json(facts_file, facts)
    tallies = {records.split: Tally() for records in splits}
    with (
        ThreadPoolExecutor(len(usable_cores())) as pool,
        Bars() as bars,
    ):
        task = bars.add_task("pictures", total=sum(map(len, splits)), figures="")
        for records in splits:
            for number, shard in enumerate(records.shards, start=1):
                tally = _shard(records, shard, target / shard.path.name, pool)
                tallies[records.split] += tally
                bars.advance(task, tally.pictures)
                bars.draw()
                if bars.disable:
                    logging.info("%s: shard %d of %d.", records.split, number, len(records.shards))
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt") and file.name != "dataset_info.json":
            shutil.copy(file, target / file.name)
    for split in info["splits"]:
        if split["name"] in tallies:
            split["numBytes"] = str(tallies[split["name"]].bytes_after)
    info["splits"] = [split for split in info["splits"] if split["name"] in tallies]
    write_json(target / "dataset_info.json", info)  # last: it marks the data set as complete
    return tallies


def _shard(records: Records, shard: Shard, path: pathlib.Path, pool: ThreadPoolExecutor) -> Tally:
    """Writes one shard, unless it is already complete; returns its tally."""
    tally_file = path.with_name(_TALLY.format(path.name))
    if path.is_file() and (counts := read_json(tally_file)):
        return Tally(**counts)
    tally = Tally()
    copy = functools.partial(_copy, records, short_side=_SHORT_SIDE.value, quality=_QUALITY.value)
    numbers = range(shard.first, shard.first + shard.length)

    def copies() -> Iterator[bytes]:
        nonlocal tally
        for number, (record, one) in zip(numbers, pool.map(copy, numbers), strict=True):
            for problem in (*one.damaged, *one.doubtful):
                logging.warning("%s: record %d: %s", path.name, number - shard.first, problem)
            tally += one
            yield record

    # One record per group, for random access; JPEGs cannot be compressed further.
    write_shard(path, copies(), "group_size:1,uncompressed")
    write_bytes(tally_file, json.dumps(vars(tally)).encode())
    return tally


def _copy(records: Records, number: int, short_side: int, quality: int) -> tuple[bytes, Tally]:
    """Returns a record of the copy, a TFDS example, and its tally."""
    from tensorflow_datasets.proto import tf_example_pb2

    stored = records.stored(number)
    before, _, name = records.parse(number, stored)
    name = name or "a picture"
    tally = Tally(pictures=1, bytes_before=len(before), bytes_after=len(before))
    try:
        image = jpeg.decode(before)
    except jpeg.UnreadableError as e:
        tally.damaged = [f"{name} ({e})"]
        return stored, tally
    if doubt := jpeg.doubt(before):
        tally.doubtful = [f"{name} ({doubt})"]
    shrink = short_side / min(image.shape[:2])
    is_rgb = jpeg.is_rgb(before)
    if shrink >= 1 and is_rgb:
        return stored, tally
    if shrink < 1:
        height, width = (max(short_side, round(length * shrink)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if max(image.shape[:2]) > _LONGEST:
        return stored, tally
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    after = buffer.getvalue()
    tally.bytes_after = len(after)
    tally.reduced, tally.converted, tally.compressed = int(shrink < 1), int(not is_rgb), 1
    error = np.square(jpeg.decode(after).astype(np.float32) - image).mean()
    tally.squared_error = float(error)
    example = tf_example_pb2.Example.FromString(stored)
    example.features.feature["image"].bytes_list.value[0] = after
    return example.SerializeToString(deterministic=True), tally


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    command_line.run(main)
