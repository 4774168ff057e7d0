"""Compares the features of trained networks: simple classifiers on each stage's frozen features.

    python -m experiments.probe runs/degradation_digits --out=runs/degradation_digits/probes

For each network, seed and endpoint it prints the test error of a linear probe and of nearest
neighbours, as mean and standard deviation over seeds, beside the network's own error. --out gets
the figure, and every number in probes.json. docs/finetuning.md says what is computed.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags, logging
from rich.console import RenderableType

from experiments.cli import command_line, new_files, tables
from experiments.probing import figure, measured
from experiments.probing.measured import KINDS, Row
from experiments.report import figures
from experiments.report.statistics import Stat
from resnet_jax import settings, trained
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import reader, storage
from resnet_jax.runs.progress import Bars

_OUT = flags.DEFINE_string("out", None, "The folder for probes.png, probes.svg and probes.json.")
_ENDPOINTS = flags.DEFINE_list(
    "endpoints", None, "Any of stem, stage1 ..., pooled, logits; by default stem and stages."
)
_SEEDS = flags.DEFINE_integer("seeds", None, "Only this many seeds per run.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir; by default the runs'.")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) < 2:
        raise UserError("name run folders or studies: python -m experiments.probe RUN...")
    out = new_files.folder(_OUT) if _OUT.value else None
    runs = reader.find(argv[1:])
    _refuse_different_data(runs)
    rows = _measure(runs)
    if not rows:
        raise UserError("no network has a checkpoint with finite features.")
    note = _note(runs)
    if out:
        _write(out, rows, note)
    tables.print_parts(as_text(rows, note))
    if out:
        print(f"\n{out / 'probes.png'}")
    return 0


def _refuse_different_data(runs: Sequence[reader.Run]) -> None:
    sets = set()
    for run in runs:
        data = run.config["data"]
        own = data["name"] in settings.OWN_DATA
        content = run.environment.get("data", {}).get("content", "") if own else ""
        sets.add(" ".join(filter(None, [data["name"], str(data["classes"] or ""), content])))
    if len(sets) > 1:
        raise UserError(
            f"the runs are on different data, {', '.join(sorted(sets))}; probe those of one set at "
            "a time."
        )


def _note(runs: Sequence[reader.Run]) -> str:
    notes = (run.environment.get("data", {}).get("note") for run in runs)
    return next(filter(None, notes), "")


def _measure(runs: Sequence[reader.Run]) -> list[Row]:
    runs = [run for run in runs if _has_variables(run)]
    names = [run.name for run in runs]
    rows: list[Row] = []
    with Bars(transient=True) as bars:
        seeds = {run.path: len(measured.seeds_of(run, _SEEDS.value)) for run in runs}
        task = bars.add_task("networks", total=sum(seeds.values()), figures="")
        for run in runs:
            network = run.name if names.count(run.name) == 1 else str(run.path)
            found = measured.of_run(run, network, _SEEDS.value, _ENDPOINTS.value, _DATA_DIR.value)
            for number, of_seed in enumerate(found, start=1):
                if not of_seed:
                    logging.warning("%s: a seed has features that are not finite.", network)
                rows += of_seed
                bars.advance(task)
                bars.draw()
                logging.info("%s: %d of %d seeds", network, number, seeds[run.path])
    return rows


def _has_variables(run: reader.Run) -> bool:
    if trained.has_variables(run.path):
        return True
    status = reader.describe_status(run.status)
    logging.warning("%s: left out; it is %s and has no checkpoint.", run.path, status)
    return False


def as_text(rows: Sequence[Row], note: str) -> tables.Parts:
    """Returns a table per kind of probe: a row per network, a column per endpoint."""
    names = list(dict.fromkeys(row.endpoint for row in rows))
    parts: list[RenderableType] = [f"Note: {note}."] if note else []
    for kind in KINDS:
        body = []
        for network in dict.fromkeys(row.network for row in rows):
            own = [row for row in rows if row.network == network]
            errors = [
                str(Stat.of([row.probes[kind].error for row in own if row.endpoint == name]))
                for name in names
            ]
            tested = [row.own_error for row in own if row.endpoint == names[0]]
            known = [error for error in tested if error is not None]
            body.append([network, *errors, str(Stat.of(known)), str(len(tested))])
        title = (
            f"Test error of the {kind} on the features of each endpoint, %, mean ± std over n seeds"
        )
        headings = ["network", *names, "its own classifier", "n"]
        parts += ["", title, tables.aligned([headings, *body], left=1)]
    return parts[1:] if not note else parts


def _write(out: pathlib.Path, rows: Sequence[Row], note: str) -> None:
    content = {"note": note, "rows": [_json(row) for row in rows]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        storage.write_json(out / "probes.json", content)
        figures.save(figure.draw(rows, note), "probes", out)
    except OSError as e:
        raise RunError(f"{out} cannot be written: {storage.reason(e)}.") from e


def _json(row: Row) -> dict[str, object]:
    of_kinds = {kind: probe._asdict() for kind, probe in row.probes.items()}
    return dataclasses.asdict(row) | {"probes": of_kinds}


if __name__ == "__main__":
    command_line.run(main)
