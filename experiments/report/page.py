"""index.html: the whole report in one file that makes no network requests.

This module has the text and data; templates/ has the HTML.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import plotly.offline

from experiments.cli.templates import templates
from experiments.report import curves, figures, headlines, interactive, table
from experiments.report.axes import panels, series
from experiments.report.axes.rows import Section
from experiments.report.claims import all_claims
from experiments.report.claims.comparisons import COMPARED
from experiments.report.contents import Contents
from experiments.report.groups import Group
from experiments.report.signals import drawing
from resnet_jax.runs import reader
from resnet_jax.runs.records import Launch
from resnet_jax.runs.storage import Json

UNKNOWN = "not recorded"
MOST_OPEN = 6  # groups; with more of them, their sections are folded
TEMPLATES = templates(pathlib.Path(__file__).parent / "templates")


def render(contents: Contents, command: str) -> str:
    """Returns the page as text.

    Args:
      contents: of the report.
      command: the command that made it.
    """
    trained = [cell for group in contents.groups for cell in group.cells]
    trained += [trial.cell for tuning in contents.tunings for trial in tuning.trials]
    runs = [run for cell in trained for run in cell.runs]
    tops = curves.tops(contents.groups, contents.window), figures.depth_tops(contents.groups)
    drawn = figures.compared(contents.groups)
    return TEMPLATES.get_template("page.html").render(
        is_folded=len(contents.groups) > MOST_OPEN,
        groups=[_group(group, contents.window, tops, group in drawn) for group in contents.groups],
        headlines=headlines.of(contents),
        not_tested=headlines.not_tested(contents.judgements),
        claims=contents.judgements,
        tunings=contents.tunings,
        sections=_sections(contents.sections),
        window=contents.window,
        command=command,
        compared=COMPARED,
        margin=contents.margin,
        rules={claim.id: claim.rule for claim in all_claims() if claim.rule},
        provenance=_provenance(runs),
        runs=[_run(run) for run in runs],
        unknown=UNKNOWN,
        table=table,
        plotly=plotly.offline.get_plotlyjs(),
    )


def _sections(sections: Sequence[Section]) -> list[dict[str, object]]:
    y = panels.ranges(sections)
    return [
        {
            "section": section,
            "panels": panels.panels(section, y),
            "entries": panels.entries(section),
            "best_panel": panels.best_panel(section),
            "has_exploded": any(
                series.exploded(section.across, line, series.LOSS) for line in section.across.lines
            ),
            "most_loss": f"{series.EXPLODED:g}",
        }
        for section in sections
    ]


def _group(
    group: Group, window: int, tops: tuple[Mapping[str, float], Mapping[str, float]], drawn: bool
) -> dict[str, object]:
    """Returns a group's section.

    Args:
      group: the group.
      window: steps of a trailing mean over training errors.
      tops: of the curves and of the errors against depth.
      drawn: whether its errors are drawn against depth.
    """
    depth_panels = interactive.depth_panels(group, tops[1][group.data]) if drawn else []
    counts, facts = _counts(dict(group.facts)), group.facts
    data = [counts] if counts else []
    data += [f"{facts['classes']} classes"] if "classes" in facts else []
    shape = facts.get("image_shape")
    data += [f"images of {' x '.join(map(str, shape))}"] if shape else []
    return {
        "label": group.label,
        "note": group.note,
        "settings": group.settings,
        "counts": counts,
        "data": ", ".join(data),
        "cells": group.cells,
        "networks": len(group.cells),
        "replicates": sum(len(cell.replicates) for cell in group.cells),
        "has_batch_norm": group.has_batch_norm,
        "has_diverged": any(cell.diverged for cell in group.cells),
        "footnotes": table.footnotes(group),
        "curve_panels": interactive.curve_panels(group, window, tops[0][group.data]),
        "depth_panels": depth_panels,
        # The panels against depth share one legend.
        "depth_entries": {e.curve: e for panel in depth_panels for e in panel.entries}.values(),
        "signal_panels": (signal_panels := drawing.interactive_panels(group)),
        "signal_entries": {e.curve: e for panel in signal_panels for e in panel.entries}.values(),
    }


def _counts(facts: Json) -> str:
    splits = [split for split in ("train", "validation", "test") if facts.get(split) is not None]
    return ", ".join(f"{facts[split]:,} {split}" for split in splits)


# ------------------------------------------------------------------------------ provenance


def _provenance(runs: Sequence[reader.Run]) -> dict[str, list[str]]:
    """Returns each fact about the origin of the numbers, with its values over all launches."""
    launches = [launch for run in runs for launch in _launches(run)]
    return {
        "code": _distinct(map(_commit, launches)),
        "Python": _distinct(launch.get("python") for launch in launches),
        "packages": _distinct(map(_packages, launches)),
        "devices": _distinct(map(_devices, launches)),
        "hosts": _distinct(", ".join(launch.get("hosts") or []) for launch in launches),
    }


def _run(run: reader.Run) -> dict[str, object]:
    launches = _launches(run)
    return {
        "path": str(run.path),
        "commands": _distinct(launch.get("command") for launch in launches),
        "commit": "; ".join(_distinct(map(_commit, launches))),
        "devices": "; ".join(_distinct(map(_devices, launches))),
        "started": ", ".join(_distinct(launch.get("started") for launch in launches)),
    }


def _launches(run: reader.Run) -> list[Launch]:
    """Returns the facts of the first launch and of each later one."""
    first = run.environment
    return [first, *first.get("resumed", [])] if first else []


def _distinct(values: Iterable[str | None]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _commit(launch: Launch) -> str | None:
    git = launch.get("git", {})
    commit = git.get("commit")
    if not commit:
        return f"not recorded: {git['reason']}" if git.get("reason") else None
    state = {True: "", False: " with uncommitted changes", None: " (state unknown)"}
    return f"commit {commit[:12]}{state[git.get('clean')]}"


def _packages(launch: Launch) -> str:
    packages = launch.get("packages", {})
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _devices(launch: Launch) -> str:
    """Returns ``4 x NVIDIA H100``: the number of devices of each kind."""
    names = launch.get("devices", [])
    return ", ".join(
        name if names.count(name) == 1 else f"{names.count(name)} x {name}"
        for name in dict.fromkeys(names)
    )
