"""Sets too large for a device: pictures are read, decoded and resized by threads, ahead of time.

Every process holds and reads only what its own devices compute.
"""

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from resnet_jax.data import crops, jpeg
from resnet_jax.data.crops import Crop
from resnet_jax.data.order import batch_indices
from resnet_jax.data.records import Records
from resnet_jax.data.splits import EvalBatch
from resnet_jax.data.views import Views, pictures_per_batch
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel import processes
from resnet_jax.parallel.cores import usable_cores

_CHUNK = 8  # pictures a task: enough that handing it over costs nothing
_ALIGNMENT = 64  # bytes
_GREY = 128  # stands in for what cannot be decoded: about the mean of all pictures


class Workers:
    """The threads that fill batches, and how many batches ahead."""

    def __init__(self, threads: int, ahead: int):
        """Starts `threads` threads; 0 for one a core."""
        self._pool = ThreadPoolExecutor(threads or len(usable_cores()), "decode")
        self._ahead = ahead

    def close(self) -> None:
        """Drops what has not been begun and waits for the rest."""
        self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[range], None], rows: int) -> "list[Future[None]]":
        """Starts task(range of rows) for all rows."""
        return [
            self._pool.submit(task, range(first, min(first + _CHUNK, rows)))
            for first in range(0, rows, _CHUNK)
        ]

    def ahead(self, batches: "Iterable[Filling]") -> Generator[Any, None, None]:
        """Yields the finished batches in order, while the next ones are being filled."""
        started: collections.deque[Filling] = collections.deque()
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
class Filling:
    """A batch that threads are at work on."""

    tasks: "list[Future[None]]"
    to_devices: Callable[[], Any]

    def finish(self) -> Any:
        """Waits, and puts the batch on the devices; raises what a task has raised."""
        for task in self.tasks:
            task.result()
        return self.to_devices()

    def cancel(self) -> None:
        """Sees to it that no thread writes to it any longer."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            if not task.cancelled():
                with contextlib.suppress(Exception):
                    task.result()


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """Some of the pictures of a prepared split.

    Attributes:
      records: the prepared split.
      members: numbers of the records that belong to this split, int (N,).
      size: of a training crop, in pixels.
      crop: what a training step sees of a picture.
      resample: see jpeg.RESAMPLING.
    """

    records: Records
    members: np.ndarray
    size: int
    crop: Crop
    resample: str
    workers: Workers
    mesh: jax.sharding.Mesh

    arrays = ()

    def __len__(self) -> int:
        """Examples in the split."""
        return len(self.members)

    def select(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """See Split.select: the batch is the images and labels themselves."""
        return batch["images"], batch["labels"]

    def batches(
        self,
        seeds: np.ndarray,
        spans: Iterable[range],
        batch_size: int,
        parts: int,
        purpose: int,
    ) -> Generator[tuple[range, Any], None, None]:
        """See Split.batches.

        {"images": uint8 (R, steps, A, b, H, W, 3), "labels": int32 (R, steps, A, b)}.
        """
        begin = functools.partial(
            self._begin_span, seeds=seeds, batch_size=batch_size, parts=parts, purpose=purpose
        )
        return self.workers.ahead(map(begin, spans))

    def _begin_span(
        self, span: range, seeds: np.ndarray, batch_size: int, parts: int, purpose: int
    ) -> Filling:
        of_step = (parts, batch_size // parts)
        shape = (len(seeds), len(span), *of_step)
        members = np.empty(shape, np.int64)
        draws = np.empty((*shape, self.crop.draws))
        for r, seed in enumerate(seeds):
            for s, step in enumerate(span):
                order = batch_indices(int(seed), step, batch_size, len(self))
                members[r, s] = self.members[order].reshape(of_step)
                drawn = crops.draw(int(seed), purpose, step, batch_size, self.crop.draws)
                draws[r, s] = drawn.reshape(*of_step, self.crop.draws)

        batch = _Shares(meshes.split_batches(self.mesh), shape, [(self.size, self.size, 3)])
        tasks = []
        for (images,), labels, where in batch.shares:
            rows = list(np.ndindex(labels.shape))

            def fill(
                numbers: range,
                images: np.ndarray = images,
                labels: np.ndarray = labels,
                where: tuple[slice, ...] = where,
                rows: list[Any] = rows,
            ) -> None:
                its_members, its_draws = members[where], draws[where]
                for number in numbers:
                    at = rows[number]
                    labels[at] = self._crop_into(its_members[at], its_draws[at], images[at])

            tasks += self.workers.run(fill, len(rows))

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
        self, bucket: Any, members: np.ndarray, batch_size: int, views: Views
    ) -> Filling:
        shapes = [(*shape, 3) for shape in views.shapes(bucket)]
        batch = _Shares(meshes.split_batch(self.mesh), (batch_size,), shapes)
        tasks = []
        for groups, labels, (where,) in batch.shares:
            its_members = members[where]

            def fill(
                rows: range,
                groups: list[np.ndarray] = groups,
                labels: np.ndarray = labels,
                its_members: np.ndarray = its_members,
            ) -> None:
                for row in rows:
                    record = self.records[int(its_members[row])]
                    labels[row] = record.label
                    try:
                        cut = views.cut(jpeg.decode(record.image), bucket)
                    except jpeg.UnreadableError as e:
                        self.records.note_damaged(int(its_members[row]), record.name, str(e))
                        cut = [np.full(group.shape[1:], _GREY, np.uint8) for group in groups]
                    for group, view in zip(groups, cut, strict=True):
                        group[row] = view

            tasks += self.workers.run(fill, len(its_members))

        def to_devices() -> EvalBatch:
            *groups, labels = batch.place()
            mask = np.arange(batch_size) < len(members)
            return EvalBatch(
                tuple(groups), labels, processes.put(mask, meshes.split_batch(self.mesh))
            )

        return Filling(tasks, to_devices)

    def _buckets(self, views: Views) -> dict[Any, np.ndarray]:
        """Returns the members of each bucket, the same in every process."""
        if not views.needs_sizes:
            return {views.bucket(1, 1): self.members} if len(self) else {}
        sizes = np.ones((len(self), 2), np.int32)  # of what cannot be decoded: a square
        mine = range(jax.process_index(), len(self), jax.process_count())

        def measure(numbers: range) -> None:
            for row in (mine[number] for number in numbers):
                with contextlib.suppress(jpeg.UnreadableError):
                    sizes[row] = jpeg.size(self.records[int(self.members[row])].image)

        for task in self.workers.run(measure, len(mine)):
            task.result()
        sizes = processes.pick_rows(sizes)
        buckets: dict[Any, list[int]] = {}
        for member, (height, width) in zip(self.members, sizes.tolist(), strict=True):
            buckets.setdefault(views.bucket(height, width), []).append(member)
        return {bucket: np.array(members) for bucket, members in buckets.items()}


class _Shares:
    """A batch in host memory: only the shares of it that this process's devices compute.

    Attributes:
      shares: of each, the arrays of pictures, the labels and where in the batch it lies.
    """

    def __init__(
        self, sharding: NamedSharding, shape: tuple[int, ...], pictures: Sequence[tuple[int, ...]]
    ):
        """Allocates a batch of `shape`, each of its pictures an array of each of `pictures`."""
        self._sharding, self._shape, self._pictures = sharding, shape, pictures
        self.shares: list[tuple[list[np.ndarray], np.ndarray, tuple[slice, ...]]] = []
        self._by_place: dict[Any, int] = {}
        for index in sharding.addressable_devices_indices_map(shape).values():
            where = self._where(index)
            if self._key(where) in self._by_place:
                continue
            self._by_place[self._key(where)] = len(self.shares)
            lengths = tuple(s.stop - s.start for s in where)
            # Fresh memory each time: a CPU device computes on it in place.
            arrays = [_aligned((*lengths, *picture)) for picture in pictures]
            self.shares.append((arrays, np.zeros(lengths, np.int32), where))

    def place(self) -> list[jax.Array]:
        """Returns the arrays of pictures, and last the labels, on the devices."""
        placed: list[jax.Array] = []
        for i, picture in enumerate([*self._pictures, ()]):
            shape = (*self._shape, *picture)
            share = functools.partial(self._share, i)
            placed.append(jax.make_array_from_callback(shape, self._sharding, share))
        return placed

    def _share(self, i: int, index: Any) -> np.ndarray:
        arrays, labels, _ = self.shares[self._by_place[self._key(self._where(index))]]
        return [*arrays, labels][i]

    def _where(self, index: Any) -> tuple[slice, ...]:
        """Returns the part of JAX's index that says where in the batch, with starts and stops."""
        axes = zip((index or ())[: len(self._shape)], self._shape, strict=True)
        return tuple(slice(*s.indices(length)) for s, length in axes)

    @staticmethod
    def _key(where: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
        return tuple((s.start, s.stop) for s in where)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros, uint8, where JAX's CPU devices take them: others they copy."""
    size = math.prod(shape)
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
