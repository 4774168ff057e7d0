"""Where a report's numbers come from: commands, commits, versions, devices."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.report.groups import Group
from resnet_jax.runs import reader

UNKNOWN = "not recorded"


def section(groups: Sequence[Group], command: str) -> str:
    """Returns the page's section on provenance.

    Args:
      groups: all groups of the report.
      command: what made the report.
    """
    members = [run for group in groups for cell in group.cells for run in cell.runs]
    launches = [launch for run in members for launch in _launches(run)]
    facts = {
        "code": _distinct(map(_commit, launches)),
        "Python": _distinct(launch.get("python") for launch in launches),
        "packages": _distinct(map(_packages, launches)),
        "devices": _distinct(_devices(launch) for launch in launches),
        "hosts": _distinct(", ".join(launch.get("hosts") or []) for launch in launches),
    }
    shown = "".join(
        f"<dt>{name}</dt><dd>{'<br>'.join(map(html.escape, values)) or UNKNOWN}</dd>"
        for name, values in facts.items()
    )
    rows = "".join(map(_row, members))
    return (
        "<section><h2>Provenance</h2><h3>This report</h3>"
        f"<pre>{html.escape(command)}</pre><h3>The runs</h3><dl>{shown}</dl>"
        f"<details><summary>{len(members)} run folders with their commands</summary>"
        '<table class="runs"><thead><tr><th>run</th><th>command</th><th>commit</th>'
        "<th>devices</th><th>started</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>{_data(groups)}</section>"
    )


def _row(run: reader.Run) -> str:
    launches = _launches(run)
    commands = "".join(f"<pre>{html.escape(c)}</pre>" for c in _distinct(map(_command, launches)))
    cells = {
        "commit": "; ".join(_distinct(map(_commit, launches))),
        "devices": "; ".join(_distinct(map(_devices, launches))),
        "started": ", ".join(_distinct(launch.get("started") for launch in launches)),
    }
    rest = "".join(
        f'<td data-label="{label}">{html.escape(value) or UNKNOWN}</td>'
        for label, value in cells.items()
    )
    return (
        f'<tr><th scope="row">{html.escape(str(run.path))}</th>'
        f'<td class="long" data-label="command">{commands or UNKNOWN}</td>{rest}</tr>'
    )


def _data(groups: Sequence[Group]) -> str:
    items = []
    for group in groups:
        facts = group.facts
        shape = " x ".join(map(str, facts.get("image_shape") or []))
        words = [
            *(f"{facts[key]:,} {key}" for key in ("train", "validation", "test") if key in facts),
            *([f"{facts['classes']} classes"] if "classes" in facts else []),
            *([f"images of {shape}"] if shape else []),
        ]
        note = f'<p class="data-note">{html.escape(group.note)}</p>' if group.note else ""
        items.append(
            f"<dt>{html.escape(group.label)}</dt>"
            f"<dd>{html.escape(', '.join(words)) or UNKNOWN}{note}</dd>"
        )
    return f"<h3>The data</h3><dl>{''.join(items)}</dl>"


def _launches(run: reader.Run) -> list[dict[str, Any]]:
    """Returns the facts of the first launch and of each later one."""
    first = run.environment
    return [first, *first.get("resumed", [])] if first else []


def _distinct(values: Iterable[str | None]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _command(launch: dict[str, Any]) -> str | None:
    return launch.get("command")


def _commit(launch: dict[str, Any]) -> str | None:
    git = launch.get("git") or {}
    if not git.get("commit"):
        return f"not recorded: {git['reason']}" if git.get("reason") else None
    state = {True: "", False: " with uncommitted changes", None: " (state unknown)"}
    return f"commit {git['commit'][:12]}{state[git.get('clean')]}"


def _packages(launch: dict[str, Any]) -> str:
    packages = launch.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _devices(launch: dict[str, Any]) -> str:
    """Returns ``4 x NVIDIA H100``: devices of one kind, counted."""
    names = launch.get("devices") or []
    return ", ".join(
        name if names.count(name) == 1 else f"{names.count(name)} x {name}"
        for name in dict.fromkeys(names)
    )
