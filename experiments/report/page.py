"""index.html: the whole report in one file that asks the network for nothing."""

import html
import json
import pathlib
from collections.abc import Sequence

import plotly.offline

from experiments.report import interactive, provenance, table
from experiments.report.claims import COMPARED, NOT_TESTED, Claim
from experiments.report.groups import Group
from experiments.report.interactive import Entry, Panel

HERE = pathlib.Path(__file__).parent
# The browser itself refuses whatever would leave this file.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
DASH_ARRAYS = {"none": "none", "A": "none", "B": "5 3", "C": "2 3"}
NUMBERS = {
    "parameters",
    "mult_adds",
    "train_error",
    "validation_error",
    "test_error",
    "n",
    "paper_error",
}
PLAIN_WORDS = {
    (1, "confirmed"): "Deeper plain nets train worse.",
    (1, "rejected"): "Deeper plain nets train better, not worse.",
    (
        1,
        "saturated",
    ): "Shallow and deep plain nets both reach 0 %: this task cannot tell them apart.",
    (1, "undecided"): "Whether deeper plain nets train worse is undecided.",
    (2, "confirmed"): "Deeper residual nets do not train worse.",
    (2, "rejected"): "Deeper residual nets train worse, too.",
    (
        2,
        "saturated",
    ): "Shallow and deep residual nets both reach 0 %: this task cannot tell them apart.",
    (2, "undecided"): "Whether deeper residual nets train worse is undecided.",
    (4, "confirmed"): "Residual nets converge faster early on.",
    (4, "rejected"): "Residual nets converge slower early on.",
    (4, "saturated"): "Both kinds of net are at 0 % early on: this task cannot tell them apart.",
    (4, "undecided"): "Whether residual nets converge faster early on is undecided.",
}


def make(
    groups: Sequence[Group], claims: Sequence[Claim], margin: float, window: int, command: str
) -> str:
    """Returns the page as text.

    Args:
      groups: the cells, by what may be compared.
      claims: the verdicts.
      margin: of claim 2, in percentage points.
      window: of the smoothed training curves, in steps; 0 where they are as logged.
      command: what made this report.
    """
    replicates = sum(len(cell.replicates) for group in groups for cell in group.cells)
    networks = sum(len(group.cells) for group in groups)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # else browsers ask for /favicon.ico
            "<title>Plain and residual networks by depth</title>",
            f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style>",
            "</head><body><main>",
            "<h1>Plain and residual networks by depth</h1>",
            f'<p class="lead">{networks} networks, {replicates} training runs; the degradation '
            "experiment of He et al. 2015 (arXiv 1512.03385).</p>",
            *[_headline(group, claims, len(groups) > 1) for group in groups],
            *[_group(group, window, number) for number, group in enumerate(groups)],
            _claims(claims, groups, margin),
            _methods(window),
            provenance.section(groups, command),
            "</main>",
            f"<script>{plotly.offline.get_plotlyjs()}</script>",
            f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            "</body></html>\n",
        ]
    )


def _headline(group: Group, claims: Sequence[Claim], several: bool) -> str:
    label = f"<h3>{html.escape(group.label)}</h3>" if several else ""
    cards = "".join(
        f'<li class="verdict {claim.verdict}"><strong>{PLAIN_WORDS[claim.id, claim.verdict]}'
        f'</strong> <span class="badge {claim.verdict}">claim {claim.id} {claim.verdict}</span>'
        f'<p class="figure-line">{_difference(claim)}</p>'
        f'<p class="note">{html.escape(claim.detail)}</p></li>'
        for claim in claims
        if claim.group == group.label
    )
    return f'{label}{_note(group)}<ul class="verdicts">{cards}</ul>'


def _difference(claim: Claim) -> str:
    if claim.difference is None:
        return "no difference can be given"
    what = f"{claim.difference:+.2f} points of training error"
    if claim.ci95 is None:
        return f"{what}, no interval"
    return f"{what}, 95&nbsp;% interval {claim.ci95[0]:+.2f} to {claim.ci95[1]:+.2f}"


def _note(group: Group) -> str:
    return f'<p class="data-note">{html.escape(group.note)}</p>' if group.note else ""


def _group(group: Group, window: int, number: int) -> str:
    smoothed = f"a trailing mean over {window} steps" if window else "as logged, not smoothed"
    differing = ", ".join(f"{key} = {value}" for key, value in group.settings.items())
    settings = f"Differs from the other groups on this data in: {differing}." if differing else ""
    counts = ", ".join(
        f"{group.facts[split]:,} {split}"
        for split in ("train", "validation", "test")
        if group.facts.get(split) is not None
    )
    diverged = any(cell.diverged for cell in group.cells)
    crosses = " A cross at the top: seeds that diverged, in no mean." if diverged else ""
    depth = interactive.depth_panels(group)
    entries = list({entry.curve: entry for panel in depth for entry in panel.entries}.values())
    return "\n".join(
        [
            f"<section><h2>{html.escape(group.label)}</h2>",
            f'<p class="lead">{counts and f"Images: {counts}. "}{html.escape(settings)}</p>',
            "<h3>Error against iterations</h3>",
            _note(group),
            '<p class="note">Thin: training error (minibatches, with augmentation; '
            f"{smoothed}). Bold: validation error, with BatchNorm&#8217;s moving averages. Lines "
            "are means over replicates, bands ±&nbsp;1 standard deviation. Point at a curve for "
            "its values, drag to zoom, double-click to go back; the entries below each panel "
            "switch a curve.</p>",
            '<div class="figure curves" data-link="xaxis yaxis"><div class="toolbar">show'
            '<button data-show="training validation">all</button>'
            '<button data-show="training">training only</button>'
            '<button data-show="validation">validation only</button></div>'
            '<div class="panels">',
            *[
                _panel(p, f"curves-{number}-{i}")
                for i, p in enumerate(interactive.curve_panels(group, window))
            ],
            "</div></div>",
            "<h3>Final error against depth</h3>",
            _note(group),
            '<p class="note">Completed networks; error bars are ±&nbsp;1 standard deviation '
            f"over replicates.{crosses}</p>",
            f'<div class="figure depth" data-link="xaxis yaxis">{_flat_legend(entries)}'
            '<div class="panels">',
            *[_panel(p, f"depth-{number}-{i}", legend=False) for i, p in enumerate(depth)],
            "</div></div>",
            "<h3>Network by network</h3>",
            _cells(group),
            "</section>",
        ]
    )


def _panel(panel: Panel, name: str, legend: bool = True) -> str:
    # "</" would end the script element; JSON may write it as "<\/".
    spec = panel.figure.to_json().replace("</", "<\\/")
    entries = _legend(panel.entries) if legend else ""
    empty = f'<p class="note">({panel.empty})</p>' if panel.empty else ""
    return (
        f'<div><h4>{html.escape(panel.title)}</h4>{empty}<div class="plot" id="{name}">'
        f'<script type="application/json">{spec}</script></div>{entries}</div>'
    )


def _legend(entries: Sequence[Entry]) -> str:
    parts = []
    for row in dict.fromkeys(entry.row for entry in entries):
        parts.append(f'<span class="row">{html.escape(row)}</span>')
        parts += [_button(entry) for entry in entries if entry.row == row]
        parts.append("<span></span>" * (3 - sum(entry.row == row for entry in entries)))
    return f'<div class="legend">{"".join(parts)}</div>'


def _flat_legend(entries: Sequence[Entry]) -> str:
    return f'<div class="legend flat">{"".join(map(_button, entries))}</div>'


def _button(entry: Entry) -> str:
    dash = DASH_ARRAYS[entry.dash]
    mark = (
        f'<line x1="0" y1="6" x2="26" y2="6" stroke="{entry.colour}" '
        f'stroke-width="{entry.width:.1f}" stroke-dasharray="{dash}"/>'
        if entry.width
        else f'<path d="M13 1 L18 6 L13 11 L8 6 Z" fill="none" stroke="{entry.colour}"/>'
    )
    return (
        f'<button type="button" data-curve="{html.escape(entry.curve)}" data-kind="{entry.kind}" '
        f'aria-pressed="true"><svg width="26" height="12" aria-hidden="true">{mark}</svg>'
        f"{html.escape(entry.name)}</button>"
    )


def _cells(group: Group) -> str:
    head = "".join(f'<th scope="col"{_class(c.metric)}>{c.heading}</th>' for c in table.COLUMNS)
    rows = []
    for cell in group.cells:
        row = [f'<th scope="row" data-cell="{cell.name}" data-metric="name">{cell.name}</th>']
        row += [
            f'<td{_class(column.metric, column.show(cell))} data-label="{column.heading}" '
            f'data-cell="{cell.name}" data-metric="{column.metric}">'
            f"{html.escape(column.show(cell))}</td>"
            for column in table.COLUMNS[1:]
        ]
        rows.append(f"<tr>{''.join(row)}</tr>")
    notes = [f'<p class="note">{html.escape(note)}.</p>' for note in table.footnotes(group)]
    if group.note:  # the first footnote, shown as plainly as everywhere else
        notes[0] = _note(group)
    return (
        f'<table class="cells" data-group="{html.escape(group.label)}"><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>{''.join(notes)}"
    )


def _class(metric: str, shown: str = "") -> str:
    names = ["number"] * (metric in NUMBERS) + ["empty"] * (shown == table.DASH)
    return f' class="{" ".join(names)}"' if names else ""


def _claims(claims: Sequence[Claim], groups: Sequence[Group], margin: float) -> str:
    rows = "".join(map(_claim_rows, claims))
    return (
        '<section><h2>Claims</h2><table class="claims"><thead><tr><th scope="col">claim</th>'
        '<th scope="col">data and recipe</th><th scope="col">verdict</th>'
        '<th scope="col" class="number">difference, points [95 % interval]</th>'
        f'<th scope="col">from</th></tr></thead><tbody>{rows}</tbody></table>'
        f"{''.join(dict.fromkeys(map(_note, groups)))}"
        '<p class="note">Differences of mean training error in percentage points, with t intervals '
        "over seeds (paired if both networks have the same seeds, else Welch&#8217;s) that are "
        f"never narrower than counting errors allows. {html.escape(COMPARED)} "
        "(1) plain nets: confirmed if an interval lies above 0, rejected if all lie below. (2) "
        f"Residual nets; a rise of up to <b>{json.dumps(margin)}</b> points counts as none: "
        "confirmed if all intervals lie below that, rejected if one lies above. (4) plain minus "
        "residual net at the shallowest depth that has both, over the first quarter of the steps. "
        "Saturated: both networks are at 0&nbsp;%. A seed that diverged counts as 100&nbsp;%. "
        f"{NOT_TESTED}</p></section>"
    )


def _claim_rows(claim: Claim) -> str:
    """Returns the row of a claim, and under it one per comparison."""
    group = html.escape(claim.group)
    rows = [
        f'<tr data-claim="{claim.id}" data-group="{group}">'
        f'<th scope="row">({claim.id}) {claim.statement}</th>'
        f'<td data-label="data and recipe">{group}</td>'
        f'<td data-label="verdict"><span class="badge {claim.verdict}" data-field="verdict">'
        f"{claim.verdict}</span></td>"
        f'<td class="number" data-label="difference, points" data-field="difference">'
        f"{html.escape(table.show_difference(claim))}</td>"
        f'<td class="long" data-label="from">{html.escape(claim.detail)}</td></tr>'
    ]
    for one in claim.comparisons:
        shown = [html.escape(text) for text in table.comparison_row(one)]
        network, baseline, difference, result, p, seeds = shown
        rows.append(
            f'<tr class="comparison" data-network="{network}">'
            f'<th scope="row">{network} minus {baseline}</th><td class="empty"></td>'
            f'<td data-label="result">{result}</td>'
            f'<td class="number" data-label="difference, points">{difference}</td>'
            f'<td data-label="from">p: {p}; seeds: {seeds}</td></tr>'
        )
    return "".join(rows)


def _methods(window: int) -> str:
    curves = f"Training curves are drawn as a trailing mean over {window} steps. " if window else ""
    return (
        "<section><h2>How the numbers are made</h2><p>Final training error: the mean minibatch "
        "error over the last epoch, each logged line weighted by the steps it covers. Validation "
        "and test error: after the last step, with exact BatchNorm statistics where the run took "
        "them. All are mean ± sample standard deviation over the n replicates that did not "
        f"diverge; claims count one that did as 100&nbsp;%. {curves}Only networks whose runs have "
        "ended are held against the claims; mult-adds count one multiply-add as one, for one "
        "image; device time adds up all launches. Numbers of the paper stand beside ours where it "
        "has one for the same network and recipe.</p></section>"
    )
