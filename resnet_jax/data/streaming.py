"""Data sets too large for a device: threads read, decode and resize pictures ahead of time.

Each process reads and holds only the pictures that its own devices compute.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from resnet_jax.data import crops, jpeg
from resnet_jax.data.crops import Crop
from resnet_jax.data.order import batch_indices
from resnet_jax.data.records import Pictures
from resnet_jax.data.splits import EvalBatch
from resnet_jax.data.views import Bucket, Views, pictures_per_batch
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel import processes
from resnet_jax.parallel.cores import usable_cores

T = TypeVar("T")
_CHUNK = 8  # pictures per task; enough to make the overhead of a task negligible
_AHEAD = 3  # batches in host memory, full or being filled
_ALIGNMENT = 64  # bytes
_GREY = 128  # colour that replaces a damaged picture; close to the mean of all pictures

Index = tuple[slice, ...]  # of a share of a batch, one slice per axis
# The image arrays, the labels and the position in the batch of one share.
_Share = tuple[list[np.ndarray], np.ndarray, Index]
# Writes the example at an index of the batch into the images, and returns its label.
_Write = Callable[[tuple[int, ...], list[np.ndarray]], int]


class Workers:
    """The threads that fill batches, up to `ahead` batches in advance."""

    def __init__(self, threads: int, ahead: int = _AHEAD):
        """Starts `threads` threads; 0 for one per core."""
        self._pool = ThreadPoolExecutor(threads or len(usable_cores()), "decode")
        self._ahead = ahead

    def close(self) -> None:
        """Cancels pending tasks and waits for running ones."""
        self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[range], None], rows: int) -> "list[Future[None]]":
        """Submits task(range of rows) for chunks of all rows."""
        return [
            self._pool.submit(task, range(first, min(first + _CHUNK, rows)))
            for first in range(0, rows, _CHUNK)
        ]

    def ahead(self, batches: "Iterable[Filling[T]]") -> Generator[T, None, None]:
        """Yields finished batches in order while the next ones are being filled."""
        started: collections.deque[Filling[T]] = collections.deque()
        try:
            for batch in batches:
                started.append(batch)
                if len(started) > self._ahead:
                    yield started.popleft().finish()
            while started:
                yield started.popleft().finish()
        finally:
            for batch in started:
                batch.cancel()


@dataclasses.dataclass(frozen=True)
class Filling(Generic[T]):
    """A batch that threads are filling."""

    tasks: "list[Future[None]]"
    to_devices: Callable[[], T]

    def finish(self) -> T:
        """Waits, then puts the batch on the devices; raises any task's exception."""
        for task in self.tasks:
            task.result()
        return self.to_devices()

    def cancel(self) -> None:
        """Returns once no thread writes to the batch any more."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            if not task.cancelled():
                with contextlib.suppress(Exception):
                    task.result()


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """A subset of a prepared split, or of a user's files.

    Attributes:
      records: the prepared split, or the files.
      members: numbers of the records in the subset, int (N,).
      size: side of a training crop, in pixels.
      crop: the training crop.
      resample: see jpeg.RESAMPLING.
      channels: of the views.
    """

    records: Pictures
    members: np.ndarray
    size: int
    crop: Crop
    resample: str
    workers: Workers
    mesh: jax.sharding.Mesh
    channels: int = 3

    arrays = ()

    def __len__(self) -> int:
        """Examples in the split."""
        return len(self.members)

    @staticmethod
    def select(arrays: tuple[()], batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """See Split.select; the batch holds the images and labels themselves."""
        return batch["images"], batch["labels"]

    def batches(
        self,
        seeds: np.ndarray,
        spans: Iterable[range],
        batch_size: int,
        parts: int,
        purpose: int,
    ) -> Generator[tuple[range, dict[str, jax.Array]], None, None]:
        """See Split.batches.

        {"images": uint8 (R, steps, A, b, H, W, 3), "labels": int32 (R, steps, A, b)}.
        """
        begin = functools.partial(
            self._begin_span, seeds=seeds, batch_size=batch_size, parts=parts, purpose=purpose
        )
        return self.workers.ahead(map(begin, spans))

    def _begin_span(
        self, span: range, seeds: np.ndarray, batch_size: int, parts: int, purpose: int
    ) -> Filling[tuple[range, dict[str, jax.Array]]]:
        step_shape = (parts, batch_size // parts)
        shape = (len(seeds), len(span), *step_shape)
        members = np.empty(shape, np.int64)
        draws = np.empty((*shape, self.crop.draws))
        for r, seed in enumerate(seeds):
            for s, step in enumerate(span):
                order = batch_indices(int(seed), step, batch_size, len(self))
                members[r, s] = self.members[order].reshape(step_shape)
                uniforms = crops.draw(int(seed), purpose, step, batch_size, self.crop.draws)
                draws[r, s] = uniforms.reshape(*step_shape, self.crop.draws)

        def write(index: tuple[int, ...], pictures: list[np.ndarray]) -> int:
            return self._crop_into(members[index], draws[index], *pictures)

        batch = _Shares(meshes.split_batches(self.mesh), shape, [(self.size, self.size, 3)])
        tasks = batch.fill(self.workers, shape, write)

        def to_devices() -> tuple[range, dict[str, jax.Array]]:
            return span, dict(zip(("images", "labels"), batch.place(), strict=True))

        return Filling(tasks, to_devices)

    def _crop_into(self, number: int, draws: np.ndarray, out: np.ndarray) -> int:
        """Writes a picture's crop, uint8 (H, W, 3), and returns its label."""
        record = self.records[int(number)]
        uniforms = draws.tolist()
        try:
            cut = jpeg.decode(record.image, lambda h, w: self.crop.box(h, w, uniforms))
            jpeg.resize(cut, self.size, self.size, self.resample, into=out)
        except jpeg.UnreadableError as e:
            self.records.note_damaged(int(number), record.name, str(e))
            out[...] = _GREY
        return record.label

    def views(self, views: Views, batch_size: int) -> Generator[EvalBatch, None, None]:
        """See Split.views."""
        devices = meshes.batch_devices(self.mesh)
        batches = []
        for bucket, members in self._buckets(views).items():
            count = pictures_per_batch(views, bucket, batch_size, self.size, devices)
            batches += [
                (bucket, members[start : start + count], count)
                for start in range(0, len(members), count)
            ]
        begin = functools.partial(self._begin_views, views=views)
        return self.workers.ahead(begin(*batch) for batch in batches)

    def _begin_views(
        self, bucket: Bucket, members: np.ndarray, batch_size: int, views: Views[Bucket]
    ) -> Filling[EvalBatch]:
        def write(index: tuple[int, ...], pictures: list[np.ndarray]) -> int:
            record = self.records[int(members[index])]
            try:
                cut = views.cut(jpeg.decode(record.image), bucket)
            except jpeg.UnreadableError as e:
                self.records.note_damaged(int(members[index]), record.name, str(e))
                cut = [np.full_like(picture, _GREY) for picture in pictures]
            for picture, view in zip(pictures, cut, strict=True):
                picture[...] = view
            return record.label

        shapes = [(*shape, self.channels) for shape in views.shapes(bucket)]
        batch = _Shares(meshes.split_batch(self.mesh), (batch_size,), shapes)
        tasks = batch.fill(self.workers, members.shape, write)

        def to_devices() -> EvalBatch:
            *groups, labels = batch.place()
            mask = np.arange(batch_size) < len(members)
            return EvalBatch(
                tuple(groups), labels, processes.put(mask, meshes.split_batch(self.mesh))
            )

        return Filling(tasks, to_devices)

    def _buckets(self, views: Views[Bucket]) -> dict[Bucket, np.ndarray]:
        """Returns the members of each bucket, the same in every process."""
        if not views.needs_sizes:
            return {views.bucket(1, 1): self.members} if len(self) else {}
        sizes = np.ones((len(self), 2), np.int32)  # damaged pictures count as squares
        own_rows = range(jax.process_index(), len(self), jax.process_count())

        def measure(numbers: range) -> None:
            for row in (own_rows[number] for number in numbers):
                with contextlib.suppress(jpeg.UnreadableError):
                    sizes[row] = jpeg.size(self.records[int(self.members[row])].image)

        for task in self.workers.run(measure, len(own_rows)):
            task.result()
        sizes = processes.pick_rows(sizes)
        buckets: dict[Bucket, list[int]] = {}
        for member, (height, width) in zip(self.members, sizes.tolist(), strict=True):
            buckets.setdefault(views.bucket(height, width), []).append(member)
        return {bucket: np.array(members) for bucket, members in buckets.items()}


class _Shares:
    """The shares of a batch that this process's devices compute, in host memory."""

    def __init__(
        self, sharding: NamedSharding, shape: tuple[int, ...], pictures: Sequence[tuple[int, ...]]
    ):
        """Allocates arrays (*shape, *picture) for each picture shape, and labels of `shape`."""
        self._sharding, self._shape, self._pictures = sharding, shape, pictures
        self._shares: dict[tuple[int, ...], _Share] = {}  # by their starts in the batch
        for index in sharding.addressable_devices_indices_map(shape).values():
            position, start = self._position(index)
            if start in self._shares:  # another device computes the same share
                continue
            lengths = tuple(s.stop - s.start for s in position)
            # Not reused for the next batch: CPU devices compute on this memory in place.
            arrays = [_aligned((*lengths, *picture)) for picture in pictures]
            self._shares[start] = arrays, np.zeros(lengths, np.int32), position

    def fill(self, workers: Workers, shape: tuple[int, ...], write: _Write) -> "list[Future[None]]":
        """Starts filling the shares with a batch; the `shape` of the last one may be smaller."""
        tasks = []
        for share in self._shares.values():
            lengths = zip(shape, share[2], strict=True)
            indices = list(itertools.product(*(range(length)[part] for length, part in lengths)))
            tasks += workers.run(functools.partial(self._fill, share, indices, write), len(indices))
        return tasks

    @staticmethod
    def _fill(share: _Share, indices: list[tuple[int, ...]], write: _Write, rows: range) -> None:
        arrays, labels, position = share
        for index in indices[rows.start : rows.stop]:
            here = tuple(i - part.start for i, part in zip(index, position, strict=True))
            labels[here] = write(index, [array[here] for array in arrays])

    def place(self) -> list[jax.Array]:
        """Returns the image arrays, then the labels, on the devices."""
        placed: list[jax.Array] = []
        for i, picture in enumerate([*self._pictures, ()]):
            shape = (*self._shape, *picture)
            share = functools.partial(self._share, i)
            placed.append(jax.make_array_from_callback(shape, self._sharding, share))
        return placed

    def _share(self, i: int, index: Index | None) -> np.ndarray:
        arrays, labels, _ = self._shares[self._position(index)[1]]
        return [*arrays, labels][i]

    def _position(self, index: Index | None) -> tuple[Index, tuple[int, ...]]:
        """Returns the batch axes of JAX's index, with explicit bounds, and their starts."""
        axes = zip((index or ())[: len(self._shape)], self._shape, strict=True)
        position = tuple(slice(*s.indices(length)) for s, length in axes)
        return position, tuple(s.start for s in position)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 zeros, aligned so that JAX's CPU devices use them without a copy."""
    size = math.prod(shape)
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
