"""Writes a report from run folders: figures, table, verdicts and one self-contained page.

    python -m experiments.compare runs/degradation_digits --out=runs/degradation_digits/report

Unfinished runs are drawn as far as they went, so a study can be viewed while it trains. The report
reads only run folders: it needs neither JAX nor the machine that trained.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from experiments.cli import command_line, new_files, tables
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage

_OUT = flags.DEFINE_string("out", None, "The report's folder; created if it does not exist.")
_WINDOW = flags.DEFINE_integer(
    "window", 0, "Draw training errors as trailing means over this many steps; 0: as logged.",
    lower_bound=0,
)  # fmt: skip
_MARGIN = flags.DEFINE_float(
    "margin", 0.5, "Claim 2's margin: how many points of training error a deeper residual net may "
    "be worse.",
)  # fmt: skip


def compare(
    folders: Sequence[str], out: pathlib.Path, *, window: int, margin: float, command: str
) -> tables.Parts:
    """Writes the report on `folders` into `out` and returns its text for a terminal.

    Args:
      folders: run folders and studies (folders of run folders).
      out: the report's folder; created if it does not exist.
      window: steps of a trailing mean over drawn training errors; 0 draws them as logged.
      margin: percentage points of training error that claim 2 forgives.
      command: the command that the page shows as its origin.

    Raises:
      UserError: a folder holds no run, a run's file is malformed, or `out` cannot be written.
    """
    # Imported here, so that a missing extra is one sentence.
    from experiments.report import contents, figures, outputs, page
    from experiments.report.axes import figure
    from experiments.report.signals import drawing

    report = contents.of_runs(reader.find(map(_with_runs, folders)), margin, window)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text(outputs.as_json(report), encoding="utf-8")
        (out / "table.csv").write_text(outputs.as_csv(report), encoding="utf-8")
        (out / "table.md").write_text(outputs.as_markdown(report), encoding="utf-8")
        figures.write(report.groups, window, out)
        drawing.write(report.groups, out)
        figure.write(report.sections, out)
        (out / "index.html").write_text(page.render(report, command), encoding="utf-8")
    except OSError as e:
        raise UserError(f"The report cannot be written to {out}: {e.strerror}.") from e
    return outputs.as_text(report)


def _with_runs(folder: str) -> storage.Path:
    """Returns a study's folder, or its pilots if it has no other run yet."""
    study = storage.locate(folder)
    pilots = study / reader.PILOTS
    return pilots if not reader.configs(study) and storage.is_dir(pilots) else study


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    folders, out = argv[1:], new_files.folder(_OUT)
    if not folders:
        raise UserError("Give the folder of a run or of a study; see --help.")
    if not 0 <= _MARGIN.value < 100:
        raise UserError(
            f"--margin={_MARGIN.value} is not allowed; it is 0 or more points, below 100."
        )
    command = f"{command_line.spelled('compare')} {shlex.join(sys.argv[1:])}"
    parts = compare(folders, out, window=_WINDOW.value, margin=_MARGIN.value, command=command)
    tables.print_parts(parts)
    print(out / "index.html")
    return 0


if __name__ == "__main__":
    command_line.run(main)
