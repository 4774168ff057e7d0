"""Derives a report from run folders: figures, table, verdicts and one self-contained page.

    python -m experiments.compare runs/degradation_digits --out=runs/degradation_digits/report

A run is drawn as far as it went, so a study may be looked at while it trains. It needs neither
JAX nor the machine that trained: run folders are all that is read.
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import NoReturn

from experiments.cli import program, tables
from experiments.report import claims, figures, groups, page, table
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage


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


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are user errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; see --help.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m experiments.compare", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run, or a folder of runs")
    parser.add_argument("--out", required=True, help="folder for the report; made where new")
    parser.add_argument(
        "--window",
        type=int,
        default=0,
        help="draw training errors as a trailing mean over this many steps; 0 (default): as logged",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.5,
        help="percentage points of training error that deeper residual nets may lose before "
        "claim 2 fails; default %(default)s",
    )
    parsed = parser.parse_args(arguments)
    parsed.out = storage.on_disk(parsed.out, "--out")
    if parsed.window < 0:
        raise UserError(f"--window={parsed.window} is negative; it is a number of steps, or 0.")
    if not 0 <= parsed.margin < 100:
        raise UserError(f"--margin={parsed.margin} is not allowed; it is in points from 0 to 100.")
    return parsed


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit code; raises UserError."""
    parsed = _parse(arguments)
    command = shlex.join(["python", "-m", "experiments.compare", *arguments])
    window, margin = parsed.window, parsed.margin
    tables.show(compare(parsed.folders, parsed.out, window=window, margin=margin, command=command))
    print(parsed.out / "index.html")
    return 0


if __name__ == "__main__":
    program.run(main, parse=lambda argv: argv[1:])
