"""A trace of some training steps (config.profile), and whether the device waited between them.

The trace lies in the run folder's profile/, for TensorBoard's profile plugin or ui.perfetto.dev;
gaps.json in it says how long each device had nothing to do.
"""

import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import logging

from resnet_jax.parallel.processes import is_primary
from resnet_jax.runs import storage

_GAPS = "gaps.json"
_ACCELERATOR = "/device:"
_HOST = "/host:CPU"
# The lines of a plane that show work of the device: a GPU's streams, a TPU's operations, and of a
# CPU the threads that XLA computes in.
_WORK = ("Stream #", "XLA Ops", "tf_XLA")


class Profiler:
    """Traces the steps from config.profile's first to its last, in process 0 alone."""

    def __init__(self, steps: tuple[int, ...], folder: storage.Path):
        """Will trace `steps` (first, last), counted from 1, into `folder`; () traces nothing."""
        self._steps = steps if is_primary() else ()
        self._folder = folder
        self._traced: tempfile.TemporaryDirectory[str] | None = None
        self._began = 0  # steps before the trace

    def before(self, span: range, state: Any) -> None:
        """Begins the trace where `span`, counted from 0, has the first step in it or after it."""
        if not self._steps or self._traced or span.stop < self._steps[0]:
            return
        if span.start >= self._steps[1]:
            self._steps = ()  # a run that goes on behind them
            return
        jax.block_until_ready(state)  # or the steps before would be in it
        # On a local disk: XLA writes the files, and knows no buckets.
        self._traced = tempfile.TemporaryDirectory()
        self._began = span.start
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it slows down what it looks at
        jax.profiler.start_trace(self._traced.name, profiler_options=options)

    def after(self, span: range, results: Any) -> None:
        """Ends the trace where `span` has the last step in it; waits for `results` then."""
        if self._traced is None or span.stop < self._steps[1]:
            return
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        traced, self._traced, self._steps = self._traced, None, ()
        with traced:
            about = gaps(pathlib.Path(traced.name), span.stop - self._began)
            about = {"first_step": self._began + 1, "last_step": span.stop} | about
            self._keep(pathlib.Path(traced.name), about)
        for device, found in about["devices"].items():
            logging.info(
                "Steps %d to %d were traced: on %s %.3f ms a step, %.1f %% of it busy, the longest "
                "gap %.3f ms; see %s.",
                about["first_step"],
                about["last_step"],
                device,
                found["milliseconds_a_step"],
                found["busy_percent"],
                found["longest_gap_milliseconds"],
                self._folder,
            )

    def close(self) -> None:
        """Drops a trace that has not come to its end."""
        traced, self._traced = self._traced, None
        if traced is not None:
            with traced:
                jax.profiler.stop_trace()

    def _keep(self, traced: pathlib.Path, about: Mapping[str, Any]) -> None:
        """Copies the trace into the run folder; a run does not end because it cannot."""
        try:
            for path in sorted(traced.rglob("*")):
                if path.is_file():
                    copy = self._folder / path.relative_to(traced).as_posix()
                    if not storage.is_bucket(copy):
                        copy.parent.mkdir(parents=True, exist_ok=True)
                    storage.write_bytes(copy, path.read_bytes())
            storage.write_json(self._folder / _GAPS, about)
        except OSError as e:
            logging.error("%s cannot be written: %s.", self._folder, storage.reason(e))


def gaps(folder: str | os.PathLike[str], steps: int) -> dict[str, Any]:
    """Reads how busy the devices were in a trace of `steps` training steps.

    Returns:
      {"devices": {name: {"milliseconds_a_step", "busy_percent", "longest_gap_milliseconds"}}}, a
      device's time being that from its first to its last operation. A CPU counts as busy while any
      of its threads is.
    """
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes}
    names = [name for name in planes if name.startswith(_ACCELERATOR)] or [_HOST]
    found = {}
    for name in names:
        events = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for line in planes[name].lines
            if line.name.startswith(_WORK)
            for event in line.events
        ]
        if events:
            found[name] = busy(events, steps)
    return {"devices": found}


def busy(events: Iterable[tuple[float, float]], steps: int) -> dict[str, float]:
    """Returns what gaps() says of a device whose operations lasted from and to these ns."""
    together: list[list[float]] = []  # of operations that touch or overlap
    for start, end in sorted(events):
        if together and start <= together[-1][1]:
            together[-1][1] = max(together[-1][1], end)
        else:
            together.append([start, end])
    whole = together[-1][1] - together[0][0]
    idle = [b[0] - a[1] for a, b in itertools.pairwise(together)]
    return {
        "milliseconds_a_step": whole / steps / 1e6,
        "busy_percent": 100 * (1 - sum(idle) / whole) if whole else 100.0,
        "longest_gap_milliseconds": max(idle, default=0.0) / 1e6,
    }
