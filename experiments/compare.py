"""Derives a report from run folders: figures, table, verdicts and one self-contained page.

    python -m experiments.compare runs/degradation_digits --out=runs/degradation_digits/report

A run is drawn as far as it went, so a study may be looked at while it trains. It needs neither
JAX nor the machine that trained: run folders are all that is read.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from experiments.cli import command_line, tables
from experiments.report import claims, figures, groups, page, table
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage

_OUT = flags.DEFINE_string("out", None, "Folder for the report; made if it is new.")
_WINDOW = flags.DEFINE_integer(
    "window", 0, "Steps of a trailing mean over the drawn training errors; 0: as logged.",
    lower_bound=0,
)  # fmt: skip
_MARGIN = flags.DEFINE_float(
    "margin", 0.5, "Points of training error by which claim 2 lets deeper residual nets be worse."
)


def compare(
    folders: Sequence[str], out: pathlib.Path, *, window: int, margin: float, command: str
) -> tables.Parts:
    """Writes the report on `folders` into `out` and returns what a terminal shows of it.

    Args:
      folders: run folders, and studies (folders of run folders).
      out: where to write; made where it is new.
      window: steps of a trailing mean over drawn training errors; 0 draws them as logged.
      margin: percentage points of training error that claim 2 forgives.
      command: what the page names as its own origin.

    Raises:
      UserError: a folder holds no run, a run's files are not what a run writes, or `out` cannot
        be written.
    """
    found = groups.make(reader.find(folders))
    verdicts = [claim for group in found for claim in claims.judge(group, margin)]
    numbers = table.as_json(found, verdicts, margin)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text(numbers, encoding="utf-8")
        (out / "table.csv").write_text(table.as_csv(found), encoding="utf-8")
        (out / "table.md").write_text(table.as_markdown(found, verdicts), encoding="utf-8")
        figures.write(found, window, out)
        (out / "index.html").write_text(
            page.make(found, verdicts, margin, window, command), encoding="utf-8"
        )
    except OSError as e:
        raise UserError(f"The report cannot be written to {out}: {e.strerror}.") from e
    return table.as_text(found, verdicts)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    folders, out = argv[1:], storage.on_disk(command_line.required(_OUT), "--out")
    if not folders:
        raise UserError("DIR is missing: a run, or a folder of runs; see --help.")
    if not 0 <= _MARGIN.value < 100:
        raise UserError(f"--margin={_MARGIN.value} is not allowed; it is in points from 0 to 100.")
    command = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    parts = compare(folders, out, window=_WINDOW.value, margin=_MARGIN.value, command=command)
    tables.show(parts)
    print(out / "index.html")
    return 0


if __name__ == "__main__":
    command_line.run(main)
