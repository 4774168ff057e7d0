"""What benchmarks have in common: numbers in flags, and a table on the screen and on disk."""

import datetime
import platform
from collections.abc import Mapping, Sequence

from absl import flags

from benchmarks import machine
from experiments.cli import tables
from resnet_jax.errors import UserError
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage
from resnet_jax.runs.storage import write_bytes, write_json

OUT = flags.DEFINE_string("out", None, "A folder for table.txt and table.json; none: print only.")


def numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """Returns the whole numbers of a list flag, from 1 up; raises UserError for others."""
    for text in texts:
        if not (text.isdecimal() and int(text)):
            raise UserError(f"--{flag} has {text!r}; allowed are whole numbers from 1 up.")
    return [int(text) for text in texts]


def surroundings(packages: Sequence[str]) -> dict[str, object]:
    """Returns what is said under every table: the machine, the versions of packages, the time."""
    return {
        "cores": len(usable_cores()),
        "processor": machine.processor(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **machine.versions(packages)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def publish(
    cells: Sequence[Sequence[str]],
    about: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Prints a table, and writes it where --out says.

    Args:
      cells: the lines, headings first.
      about: what is said under it.
      rows: all that was measured, for table.json.
    """
    parts = [tables.aligned(cells), "", *(f"{key}: {value}" for key, value in about.items())]
    tables.show(parts)
    if OUT.value:
        out = storage.on_disk(OUT.value, "--out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "table.json", dict(about) | {"rows": rows})
        write_bytes(out / "table.txt", (tables.plain(parts) + "\n").encode())
