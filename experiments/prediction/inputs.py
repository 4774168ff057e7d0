"""Progress and refusals that predict and features share."""

import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from absl import logging

from resnet_jax.data.pictures import Files
from resnet_jax.errors import UserError
from resnet_jax.runs.progress import Bars

MIB = 2**20
_EVERY_SECONDS = 10.0  # between log lines, if there is no terminal
_Rows = TypeVar("_Rows")


def counted(
    batches: Iterator[tuple[np.ndarray, _Rows]], total: int
) -> Iterator[tuple[np.ndarray, _Rows]]:
    """Yields the batches of `examples.outputs`, and shows how many of `total` pictures are done."""
    done, logged = 0, time.monotonic()
    with Bars(transient=True) as bars:
        task = bars.add_task("pictures", total=total, figures="")
        for labels, rows in batches:
            yield labels, rows
            done += len(labels)
            bars.advance(task, len(labels))
            bars.draw()
            if bars.disable and time.monotonic() - logged > _EVERY_SECONDS:
                logged = time.monotonic()
                logging.info("%d of %d pictures", done, total)


def require_readable(files: Files) -> None:
    """Raises UserError if no picture could be read."""
    if len(files.unreadable) == len(files):
        number, reason = next(iter(files.unreadable.items()))
        raise UserError(f"no picture could be read; {files.names[number]}: {reason}.")


def require_room(size: int, folder: pathlib.Path) -> None:
    """Raises UserError if the memory or the folder's disk cannot hold `size` bytes of features."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = {"this machine's memory": memory, "the disk of --out": shutil.disk_usage(folder).free}
    for place, available in room.items():
        if size > available:
            raise UserError(
                f"the features take {size / MIB:,.0f} MiB, but {place} has room for "
                f"{available / MIB:,.0f}; take fewer pictures, a later endpoint or "
                "--mean_over_positions."
            )
