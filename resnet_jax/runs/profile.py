"""Traces training steps (config.profile) and measures how busy the devices were.

The trace goes to the run folder's profile/, for TensorBoard's profile plugin or ui.perfetto.dev.
gaps.json beside it has the idle times of each device.
"""

import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping

import jax
from absl import logging

from resnet_jax.parallel.processes import is_primary
from resnet_jax.pytree import PyTree
from resnet_jax.runs import storage

_GAPS = "gaps.json"
_ACCELERATOR = "/device:"
_HOST = "/host:CPU"
# Names of a trace's lines that show device work: GPU streams, TPU operations, XLA's CPU threads.
_WORK = ("Stream #", "XLA Ops", "tf_XLA")


class Profiler:
    """Traces the steps of config.profile in process 0."""

    def __init__(self, steps: tuple[int, ...], folder: storage.Path):
        """Will trace `steps` (first, last), counted from 1, into `folder`; () traces nothing."""
        self._steps = steps if is_primary() else ()
        self._folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._began = 0  # steps before the trace

    def before(self, span: range, state: PyTree) -> None:
        """Starts the trace if `span`, counted from 0, reaches the first step to trace."""
        if not self._steps or self._scratch or span.stop < self._steps[0]:
            return
        if span.start >= self._steps[1]:
            self._steps = ()  # the run resumed after these steps
            return
        jax.block_until_ready(state)  # so that earlier steps are not in the trace
        # XLA writes the trace itself and cannot write to buckets.
        self._scratch = tempfile.TemporaryDirectory()
        self._began = span.start
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing Python slows it down
        jax.profiler.start_trace(self._scratch.name, profiler_options=options)

    def after(self, span: range, results: PyTree) -> None:
        """Ends the trace if `span` includes the last step to trace; then waits for `results`."""
        if self._scratch is None or span.stop < self._steps[1]:
            return
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        scratch, self._scratch, self._steps = self._scratch, None, ()
        with scratch:
            measured = gaps(pathlib.Path(scratch.name), span.stop - self._began)
            summary = {"first_step": self._began + 1, "last_step": span.stop} | measured
            self._keep(pathlib.Path(scratch.name), summary)
        for device, figures in measured["devices"].items():
            logging.info(
                "Steps %d to %d were traced: %s took %.3f ms per step and was busy for %.1f %% of "
                "it, the longest gap was %.3f ms; see %s.",
                summary["first_step"],
                summary["last_step"],
                device,
                figures["milliseconds_a_step"],
                figures["busy_percent"],
                figures["longest_gap_milliseconds"],
                self._folder,
            )

    def close(self) -> None:
        """Discards an unfinished trace."""
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            with scratch:
                jax.profiler.stop_trace()

    def _keep(self, trace: pathlib.Path, summary: Mapping[str, object]) -> None:
        """Copies the trace into the run folder; a failure to do so does not stop the run."""
        try:
            for path in sorted(trace.rglob("*")):
                if path.is_file():
                    copy = self._folder / path.relative_to(trace).as_posix()
                    if not storage.is_bucket(copy):
                        copy.parent.mkdir(parents=True, exist_ok=True)
                    storage.write_bytes(copy, path.read_bytes())
            storage.write_json(self._folder / _GAPS, summary)
        except OSError as e:
            logging.error("%s cannot be written: %s.", self._folder, storage.reason(e))


def gaps(folder: str | os.PathLike[str], steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """Reads how busy the devices were in a trace of `steps` training steps.

    Returns:
      {"devices": {name: {"milliseconds_a_step", "busy_percent", "longest_gap_milliseconds"}}}. A
      device's time runs from its first to its last operation. A CPU counts as busy while any of its
      threads is.
    """
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes}
    names = [name for name in planes if name.startswith(_ACCELERATOR)] or [_HOST]
    devices = {}
    for name in names:
        events = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for line in planes[name].lines
            if line.name.startswith(_WORK)
            for event in line.events
        ]
        if events:
            devices[name] = busy(events, steps)
    return {"devices": devices}


def busy(events: Iterable[tuple[float, float]], steps: int) -> dict[str, float]:
    """Returns the figures of gaps() for a device with these operations (start, end), in ns."""
    merged: list[list[float]] = []  # intervals of operations that touch or overlap
    for start, end in sorted(events):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    total = merged[-1][1] - merged[0][0]
    idle = [b[0] - a[1] for a, b in itertools.pairwise(merged)]
    return {
        "milliseconds_a_step": total / steps / 1e6,
        "busy_percent": 100 * (1 - sum(idle) / total) if total else 100.0,
        "longest_gap_milliseconds": max(idle, default=0.0) / 1e6,
    }
