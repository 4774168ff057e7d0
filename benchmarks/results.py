"""Flags and the table that all benchmarks share."""

import datetime
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from benchmarks import machine
from experiments.cli import tables
from resnet_jax.errors import UserError
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage
from resnet_jax.runs.storage import write_bytes, write_json

Row = dict[str, Any]  # a measurement, ready for JSON
# Where a table's numbers come from.
MEASURED = "measured on this machine, which ran the programs"
COMPILED = "read off the compiled programs, which nothing ran"
TIMED = "seconds measured on this machine, which compiled the programs; the rest read off them"
OUT = flags.DEFINE_string(
    "out", None, "The folder for table.txt and table.json; by default only print."
)


def numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """Returns a list flag's values as whole numbers; raises UserError unless all are positive."""
    for text in texts:
        if not (text.isdecimal() and int(text)):
            raise UserError(f"--{flag} has {text!r}; allowed are whole numbers from 1 up.")
    return [int(text) for text in texts]


def define_batch_size() -> flags.FlagHolder[int | None]:
    """Defines --batch_size, None by default."""
    return flags.DEFINE_integer(
        "batch_size", None, "Images per step; by default the recipe's.", lower_bound=1
    )


def define_dtype(default: str = "bfloat16") -> flags.FlagHolder[str]:
    """Defines --dtype."""
    return flags.DEFINE_enum("dtype", default, ["bfloat16", "float32"], "Activations' dtype.")


def define_rounds(default: int) -> flags.FlagHolder[int]:
    """Defines --rounds."""
    return flags.DEFINE_integer("rounds", default, "Rounds in which all take turns.", lower_bound=1)


def spread(values: Sequence[float], form: str) -> str:
    """Returns ``median [lowest, highest]`` with a format such as ".1f"; "-" without values."""
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def log(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Logs the rows of a table measured so far."""
    logging.info("%s", tables.plain([tables.aligned([headings, *cells])]))


def name(device: jax.Device) -> str:
    """Returns a device's platform and kind."""
    return f"{device.platform}: {device.device_kind}"


def _environment(packages: Sequence[str]) -> dict[str, object]:
    return {
        "cores": len(usable_cores()),
        "processor": machine.processor(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **machine.versions(packages)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def publish(
    headings: Sequence[str],
    show: Callable[[Row], Sequence[str]],
    rows: Sequence[Row],
    about: Mapping[str, object],
    packages: Sequence[str] = ("jax", "jaxlib", "flax"),
    *,
    source: str,
) -> None:
    """Prints a table and writes it to --out.

    Args:
      headings: the columns' headings.
      show: returns a row's cells as text.
      rows: the measurements, for table.json.
      about: facts below the table; the machine, the date and versions are added.
      packages: packages whose versions to add.
      source: MEASURED, COMPILED or TIMED.
    """
    about = {"numbers": source} | dict(about) | _environment(packages)
    cells = [headings, *map(show, rows)]
    parts = [tables.aligned(cells), "", *(f"{key}: {value}" for key, value in about.items())]
    tables.print_parts(parts)
    if OUT.value:
        out = storage.on_disk(OUT.value, "--out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "table.json", about | {"rows": rows})
        write_bytes(out / "table.txt", (tables.plain(parts) + "\n").encode())
