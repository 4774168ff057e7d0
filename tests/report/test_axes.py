"""Studies along an axis: errors by value, best values, gaps, verdicts and rankings."""

import csv
import html
import json
import re

import pytest

from experiments import compare
from experiments.report import contents, outputs, page
from experiments.report.axes import answers, figure, finding, model, panels, rows, series
from experiments.report.curves import LINE_STYLES
from experiments.report.statistics import Difference, Sample, power_law
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

RATES = (0.01, 0.03, 0.1)
BEST = {8: 0.1, 20: 0.03, 56: 0.01}  # of plain nets; residual nets are best at 0.03


def error(depth, shortcut, rate):
    """Plain nets get worse with depth, and at rates other than their best."""
    best = BEST[depth] if shortcut == "none" else 0.03
    worse = 0 if rate == best else 5 if rate < best else 20
    return (depth / 4 if shortcut == "none" else 4) + worse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Two dollars are a formula to Matplotlib, and this one is malformed.
    folder = tmp_path_factory.mktemp("axes") / "a$x_$b"
    fixture.along(folder / "grid", "schedule.rate", RATES, error)
    fixture.along(
        folder / "tuned", "schedule.rate", RATES, error,
        best=lambda depth, shortcut: BEST[depth] if shortcut == "none" else 0.03,
    )  # fmt: skip
    names = {"sgd": 30.0, "adam": 5.0, "adamw": 5.1}
    fixture.along(
        folder / "names", "optimizer.name", names, lambda d, s, name: names[name],
        depths=(56,), shortcuts=("none",),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def grid(folder):
    (section,) = fixture.sections(folder / "grid")
    return section


@pytest.fixture(scope="module")
def tuned_study(folder):
    (section,) = fixture.sections(folder / "tuned")
    return section


@pytest.fixture(scope="module")
def report(folder):
    runs = reader.find([folder / "tuned", folder / "names"])
    return contents.of_runs(runs, margin=0.5)


@pytest.fixture(scope="module")
def html_page(report):
    return page.render(report, "python -m experiments.compare")


# ------------------------------------------------------------------------------- the axis


def test_a_setting_that_varies_is_an_axis(grid):
    across = grid.across
    assert (across.axis.keys, across.axis.scale, across.is_tuned) == (
        ("schedule.rate",), "log", False,
    )  # fmt: skip
    assert [value.label for value in across.axis.values] == ["0.01", "0.03", "0.1"]
    assert [line.name for line in across.lines] == [
        "plain-8", "plain-20", "plain-56", "resnet-8-A", "resnet-20-A", "resnet-56-A",
    ]  # fmt: skip
    assert across.kinds == ["plain", "residual"]
    assert across.common == list(across.axis.values)


def test_a_study_of_depths_and_shortcuts_has_no_axis(tmp_path):
    fixture.study(tmp_path / "s", depths=(8, 20), replicates=2, steps=100)
    assert fixture.sections(tmp_path / "s") == []
    # A setting that only differs between networks is an exception, not an axis.
    fixture.write(tmp_path / "s" / "more", fixture.flat(1.0), model__depth=32, batch_size=7)
    assert fixture.sections(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((0.1, 0.2, 0.4), "log"),
        ((0.1, 0.2), "linear"),
        ((0.0, 0.5, 1.0), "linear"),
        ((-1.0, 1.0), "linear"),
        (("a", "b"), "names"),
        ((True, False), "names"),
        ((0.5, "learned"), "names"),
    ],
    ids=str,
)
def test_the_scale_follows_the_values(values, scale):
    assert model.Axis(("x.y",), tuple(map(finding._value, values))).scale == scale


def test_places_of_names_are_their_indices_and_of_numbers_the_numbers():
    names = model.Axis(("x.y",), (model.Value("b"), model.Value("a")))
    assert list(series.places(names).values()) == [0.0, 1.0]
    assert series.limits(names) == (-0.5, 1.5)
    numbers = model.Axis(("x.y",), tuple(map(finding._value, (0.0, 2.0))))
    assert list(series.places(numbers).values()) == [0.0, 2.0]


def test_a_grid_of_two_axes_has_a_section_for_each_and_names_the_other_value(tmp_path):
    for momentum in (0.5, 0.9):
        fixture.along(
            tmp_path / "s" / str(momentum), "schedule.rate", (0.01, 0.1),
            lambda d, s, rate, m=momentum: 100 * rate + m,
            depths=(8,), shortcuts=("none",), optimizer__momentum=momentum,
        )  # fmt: skip
    for run in list((tmp_path / "s").glob("*/*")):
        run.rename(tmp_path / "s" / f"{run.parent.name}-{run.name}")
    for empty in ("0.5", "0.9"):
        (tmp_path / "s" / empty).rmdir()
    momentum, rate = fixture.sections(tmp_path / "s")
    assert (momentum.across.axis.name, rate.across.axis.name) == ("momentum", "rate")
    assert [line.name for line in rate.across.lines] == [
        "plain-8, momentum=0.5", "plain-8, momentum=0.9",
    ]  # fmt: skip
    assert rate.across.kinds == ["plain, momentum=0.5", "plain, momentum=0.9"]
    assert [line.best.label for line in momentum.across.lines] == ["0.5", "0.5"]


def test_settings_that_do_not_vary_independently_are_one_axis_of_names(tmp_path):
    cures = ({}, {"model__width": 2.0}, {"optimizer__momentum": 0.5, "schedule__rate": 0.3})
    for i, changes in enumerate(cures):
        fixture.write(tmp_path / "s" / str(i), fixture.flat([9.0 - i, 9.5 - i], [1, 1], [1, 1]),
                      replicates=2, **changes)  # fmt: skip
    (section,) = fixture.sections(tmp_path / "s")
    axis = section.across.axis
    assert axis.keys == ("model.width", "optimizer.momentum", "schedule.rate")
    # In the order of their errors.
    assert [v.label for v in axis.values] == ["momentum=0.5, rate=0.3", "width=2", "base"]


def test_candidates_that_only_some_cells_tried_leave_the_axes_apart(tmp_path):
    study = tmp_path / "s"
    for momentum, rates in ((0.5, (0.001, 0.01, 0.1)), (0.9, (0.01, 0.1))):  # as after --extend
        fixture.along(
            tmp_path / str(momentum), "schedule.rate", rates, lambda d, s, rate: 100 * rate,
            depths=(8,), shortcuts=("none",), best=lambda d, s: 0.01, optimizer__momentum=momentum,
        )  # fmt: skip
        (study / "pilots").mkdir(parents=True, exist_ok=True)
        for run in list((tmp_path / str(momentum)).glob("**/config.json")):
            place = study / run.parent.parent.relative_to(tmp_path / str(momentum))
            run.parent.rename(place / f"{momentum}-{run.parent.name}")
    (tmp_path / "0.5" / "pilots" / "tuning.json").rename(study / "pilots" / "tuning.json")
    momenta, rates = fixture.sections(study)
    assert (momenta.across.axis.name, rates.across.axis.name) == ("momentum", "rate")
    assert [value.label for value in rates.across.axis.values] == ["0.001", "0.01", "0.1"]
    tried = {line.name: len(line.cells) for line in rates.across.lines}
    assert tried == {"plain-8, momentum=0.5": 3, "plain-8, momentum=0.9": 2}


def test_labels_that_would_touch_are_left_out():
    values = [model.Value(f"{number:g}", number) for number in (0.0, 0.05, 0.1, 0.2, 1.0)]
    axis = model.Axis(("model.shortcut_scale",), tuple(values))
    assert series.labels(axis) == {0.0: "0", 0.1: "0.1", 0.2: "0.2", 1.0: "1"}
    # On a logarithmic axis the distance is that of the logarithms.
    rates = [model.Value(f"{number:g}", number) for number in (1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1.0)]
    axis = model.Axis(("schedule.rate",), tuple(rates))
    assert [*series.labels(axis).values()] == ["1", "0.01", "0.001", "0.0001", "1e-05"]
    # Long labels need more room.
    rates = [model.Value(f"{n:g}", n) for n in (3.7e-5, 1.11e-4, 3.33e-4, 1e-3, 1e-2, 0.1, 1.11)]
    axis = model.Axis(("schedule.rate",), tuple(rates))
    assert [*series.labels(axis).values()] == ["1.11", "0.1", "0.01", "0.001", "3.7e-05"]


def test_a_study_with_nothing_but_pilots_is_shown_by_its_pilots(tmp_path):
    fixture.along(tmp_path / "s" / "pilots", "schedule.rate", RATES, error, depths=(8,))
    assert compare._with_runs(str(tmp_path / "s")) == tmp_path / "s" / "pilots"
    fixture.write(tmp_path / "s" / "plain-8", fixture.flat(1.0), model__depth=8)
    assert compare._with_runs(str(tmp_path / "s")) == tmp_path / "s"
    assert compare._with_runs(str(tmp_path / "s" / "plain-8")) == tmp_path / "s" / "plain-8"


# ------------------------------------------------------------------------------ best values


def test_the_best_value_has_the_lowest_error(grid):
    best = {line.name: line.best.number for line in grid.across.lines}
    assert best == {"plain-8": 0.1, "plain-20": 0.03, "plain-56": 0.01} | dict.fromkeys(
        ("resnet-8-A", "resnet-20-A", "resnet-56-A"), 0.03
    )
    edges = [line.name for line in grid.across.lines if line.is_at_the_edge]
    assert edges == ["plain-8", "plain-56"]
    assert grid.origin == rows.SAME_SEEDS


def test_a_diverged_seed_counts_in_the_choice(tmp_path):
    for rate, errors, gone in ((0.01, [9.0, 9.0], {}), (0.1, [1.0, None], {"1": 10})):
        fixture.write(
            tmp_path / "s" / str(rate), fixture.flat(errors, [1, 1], [1, 1]), replicates=2,
            schedule__rate=rate, more={"diverged": gone},
        )  # fmt: skip
    (section,) = fixture.sections(tmp_path / "s")
    (line,) = section.across.lines
    assert line.best.number == 0.01
    assert series.diverged(section.across, line) == [(0.1, "1 of 2 seeds diverged")]
    assert rows.errors(section.across).rows[0][2].note == "1 of 2 diverged"


def test_a_network_of_a_tuned_study_has_fresh_seeds_at_its_best_value(tuned_study):
    across = tuned_study.across
    assert (across.is_tuned, across.study.endswith("tuned")) == (True, True)
    line = across.lines[0]
    assert line.best.number == 0.1
    assert [replicate.seed for replicate in line.at_best.replicates] == [0, 1, 2]
    assert [r.seed for r in line.cells[line.best].replicates] == [100, 101, 102]
    fresh = series.fresh_point(across, line, series.quantities(across)[0])
    assert (fresh.x, fresh.mean) == (0.1, pytest.approx(2.6))
    assert tuned_study.origin == rows.FRESH


def test_a_recipes_setting_is_no_dose(grid):
    assert grid.cures == []


def test_an_exploded_loss_is_an_arrow_that_leaves_the_axis_to_the_others(grid, monkeypatch):
    error, loss = series.quantities(grid.across)
    assert (error.name, loss) == ("training error", series.LOSS)
    whole = series.y_ranges([grid.across])[series.LOSS.name]
    line = next(line for line in grid.across.lines if line.name == "plain-20")
    losses = [p.mean for p in series.points(grid.across, line, series.LOSS)]
    assert series.exploded(grid.across, line, series.LOSS) == []
    worst = max(losses)
    monkeypatch.setattr(series, "EXPLODED", 0.99 * worst)
    ((place, words),) = series.exploded(grid.across, line, series.LOSS)
    at = series.points(grid.across, line, series.LOSS)[losses.index(worst)]
    assert (place, words) == (at.x, f"mean training loss {worst:.3g}")
    assert (at.bar, at.std > 0) == (0.0, True)
    assert series.exploded(grid.across, line, error) == []
    monkeypatch.setattr(series, "EXPLODED", 0.5 * worst)
    assert series.y_ranges([grid.across])[series.LOSS.name].high < 0.6 * worst < whole.high
    shown = panels.panels(grid, panels.ranges([grid]))
    arrows = [
        trace.text[0]
        for panel in shown[1]
        for trace in panel.figure.data
        if trace.marker.symbol == "triangle-up"
    ]
    assert any(f"<b>{line.name}</b><br>{words}" == text for text in arrows)


def test_figure_and_page_explain_the_arrow_only_where_there_is_one(folder, tmp_path, monkeypatch):
    for name, least, shown in (("none", 100.0, False), ("some", 0.2, True)):
        monkeypatch.setattr(series, "EXPLODED", least)
        assert tiny.compare(str(folder / "grid"), f"--out={tmp_path / name}") == 0
        page_has = (
            "An arrow there marks a mean loss" in (tmp_path / name / "index.html").read_text()
        )
        figure_has = "loss above 0.2" in (tmp_path / name / "axes.svg").read_text()
        assert (page_has, figure_has) == (shown, shown)


def test_a_place_at_the_edge_is_a_fraction_of_the_axis():
    assert series.Range(0.0, 50.0, is_log=False).at(0.9) == 45.0
    assert series.Range(0.01, 100.0, is_log=True).at(0.75) == pytest.approx(10.0)


def test_the_exponent_of_the_best_value_has_an_interval(grid):
    plain, residual = grid.fits
    want = power_law([8, 20, 56], [0.1, 0.03, 0.01], step=0.1 / 0.03)
    assert plain.law == want
    assert plain.law.exponent == pytest.approx(-1.18, abs=0.01)
    assert residual.law.exponent == pytest.approx(0.0)
    assert residual.law.interval[0] < -0.5 < 0.5 < residual.law.interval[1]


def test_every_kind_of_net_is_drawn_among_the_best_values(grid):
    looks = series.best_looks(grid.fits)
    assert [look.size for look in looks] == [13, 9]
    assert [look.colour for look in looks] == [LINE_STYLES[s].colour for s in ("none", "A")]
    doses = series.best_looks([grid.fits[1]] * 7)
    sizes = [look.size for look in doses]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == 3
    assert len({look.colour for look in doses}) == 7


def test_with_two_depths_the_report_says_what_an_exponent_needs(tmp_path):
    fixture.along(tmp_path / "s", "schedule.rate", RATES, error, depths=(8, 20))
    (section,) = fixture.sections(tmp_path / "s")
    assert [fit.law for fit in section.fits] == [None, None]
    assert answers.lacks_depths(section.fits[0]) == (
        "an exponent needs 3 depths of plain nets, and there are 2"
    )


# ------------------------------------------------------------------------------------ gaps


def sample(errors, first=0):
    return Sample(dict(enumerate(errors, first)), 2000.0 * len(errors))


def plus(mean):
    return [mean, mean + 0.1, mean + 0.2]


def test_the_gap_at_a_common_value_and_at_the_best_values(grid):
    gaps = {(g.kind, g.at and g.at.number): g for g in grid.gaps}
    best = gaps["plain", None]
    assert (best.deep, best.shallow, best.seeds) == ("plain-56", "plain-8", (3, 3))
    assert best.gap.difference == pytest.approx(14 - 2)
    assert best.interaction is None
    at = gaps["plain", 0.1]
    assert at.gap.difference == pytest.approx(34 - 2)
    want = Difference.of(sample(plus(34.0)), sample(plus(2.0)))
    assert at.gap.ci95 == pytest.approx(want.interval(0.05))
    # The shallow net is at its best at 0.1, so it cancels: the deep net there minus at its best.
    assert at.interaction.difference == pytest.approx(34 - 14)
    want = Difference.of(sample(plus(34.0)), sample(plus(14.0)))
    assert at.interaction.ci95 == pytest.approx(want.interval(0.05))
    # Both residual nets are best at 0.03.
    assert gaps["residual", 0.03].interaction == answers.Estimate(0.0, None)


def test_the_interaction_of_a_tuned_study_has_two_blocks_of_seeds(tuned_study):
    at = next(g for g in tuned_study.gaps if g.kind == "plain" and g.at and g.at.number == 0.03)
    terms = [(1, sample(plus(34.0), 100)), (-1, sample(plus(7.0), 100)),
             (-1, sample(plus(14.5))), (1, sample(plus(2.5)))]  # fmt: skip
    want = Difference.combined(terms)
    assert want.block_seeds == (3, 3)
    assert at.interaction.difference == pytest.approx(27 - 12)
    assert at.interaction.ci95 == pytest.approx(want.interval(0.05))


def test_a_gap_of_single_seeds_has_no_interval(tmp_path):
    fixture.along(
        tmp_path / "s", "schedule.rate", RATES, error, shortcuts=("none",), depths=(8, 56), seeds=1
    )
    (section,) = fixture.sections(tmp_path / "s")
    assert {gap.gap.ci95 for gap in section.gaps} == {None}
    assert [gap.gap.difference for gap in section.gaps] == [12.0, 7.0, 27.0, 32.0]


# -------------------------------------------------------------------------------- verdicts


def test_verdicts_at_the_best_values_stand_beside_those_at_each_value(grid, tuned_study):
    for section in (grid, tuned_study):
        shown = {row.at and row.at.number: row for row in section.verdicts}
        assert list(shown) == [None, *RATES]
        for row in shown.values():
            assert [one.id for one in row.judgements] == ["1", "2", "4"]
        assert shown[None].judgements[0].verdict == "confirmed"
        assert shown[None].judgements[0].difference == pytest.approx(12.0)
        assert shown[0.1].judgements[0].difference == pytest.approx(32.0)
    seeds = [
        {r.seed for line in tuned_study.across.lines for r in cell(line).replicates}
        for cell in (lambda line: line.at_best, lambda line: line.cells[line.best])
    ]
    assert seeds == [{0, 1, 2}, {100, 101, 102}]


def test_a_value_that_networks_lack_is_a_gap_in_the_table(tmp_path):
    fixture.along(tmp_path / "s", "schedule.rate", RATES, error, depths=(8, 56))
    missing = next((tmp_path / "s").glob("plain-56-0.1"))
    missing.rename(tmp_path / "elsewhere")
    (section,) = fixture.sections(tmp_path / "s")
    assert [value.label for value in section.across.common] == ["0.01", "0.03"]
    assert rows.errors(section.across).rows[1][3].text == "–"  # noqa: RUF001 - the dash of tables
    assert [g.at and g.at.number for g in section.gaps if g.kind == "plain"] == [None, 0.01, 0.03]


# ----------------------------------------------------------------------------------- files


def test_every_number_is_in_every_form_of_the_report(report, html_page):
    text, markdown = html.unescape(html_page), outputs.as_markdown(report)
    tuned_axis, names_axis = json.loads(outputs.as_json(report))["axes"]
    assert (tuned_axis["keys"], names_axis["scale"]) == (["schedule.rate"], "names")
    plain = tuned_axis["best_by_depth"][0]
    assert f"| plain | 8: 0.1 (at the edge), 20: 0.03, 56: 0.01 (at the edge) | "\
           f"{plain['exponent']:+.2f} |" in markdown  # fmt: skip
    for gap in tuned_axis["gaps"]:
        shown = "{:+.2f} [{:+.2f}, {:+.2f}]".format(gap["gap"]["difference"], *gap["gap"]["ci95"])
        at = f"all at rate={gap['at']:g}" if gap["at"] else "**each at its best rate**"
        assert f"| {at} | {shown} |" in markdown
        assert f">{shown}</td>" in text
    for network in tuned_axis["networks"]:
        for point in network["points"]:
            shown = f"{point['train_error']['mean']:.2f} ± {point['train_error']['std']:.2f}"
            is_best = point["value"] == network["best"]
            assert (f"| **{shown}** |" if is_best else f"| {shown} |") in markdown
            assert (f'<b class="best">{shown}</b>' if is_best else f">{shown}</td>") in text
    assert "| rejected (+20.00 [" not in markdown.split("## Tuning")[0].split("## Along")[0]
    assert re.search(r"\| all at rate=0.1 \| confirmed \(\+32.00 \[", markdown)
    assert "| sgd | 30.10 ± 0.10 | 3 | +25.00 [" in markdown


def test_the_table_has_a_column_for_every_axis_and_the_pilots(report, folder):
    written = list(csv.DictReader(outputs.as_csv(report).splitlines()))
    pilots = [row for row in written if row["group"] == f"pilots of {folder / 'tuned'}"]
    assert len(pilots) == 6 * len(RATES)
    assert {row["schedule.rate"] for row in pilots} == {"0.01", "0.03", "0.1"}
    assert {row["optimizer.name"] for row in written} == {"sgd", "adam", "adamw"}
    own = {row["name"]: row["schedule.rate"] for row in written if row["tuned"]}
    assert (own["plain-8"], own["plain-56"]) == ("0.1", "0.01")


def test_panels_of_a_quantity_have_one_range_on_the_whole_page(html_page):
    specs = {
        name: json.loads(text)["layout"]
        for name, text in re.findall(
            r'id="(axis-[\d-]+)"><script type="application/json">(.*?)</script>',
            html_page,
            re.DOTALL,
        )
    }
    plain, residual, names = (layout for name, layout in specs.items() if name.split("-")[2] == "0")
    assert len(specs) == 6  # error and loss: plain, residual; names
    assert plain["yaxis"]["range"] == residual["yaxis"]["range"] == names["xaxis"]["range"]
    assert plain["xaxis"]["type"] == "log"
    assert names["yaxis"]["ticktext"] == ["adam", "adamw", "sgd"]
    assert names["yaxis"]["range"] == [2.5, -0.5]  # the best is at the top
    assert specs["axis-0-1-0"]["yaxis"]["type"] == "log"


def test_the_figure_has_its_labels_and_is_not_blank(report, tmp_path):
    (tmp_path / "axes-3.png").touch()  # of an earlier report with more axes
    figure.write(report.sections, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"axes.png", "axes.svg", "axes-2.png", "axes-2.svg"}
    texts = (tmp_path / "axes.svg").read_text() + (tmp_path / "axes-2.svg").read_text()
    for label in (
        "Along schedule.rate, from 0.01 to 0.1", "best rate against depth", "residual nets",
        "training loss (nats)", "depth 56", "fresh seeds", "best value", "adamw",
    ):  # fmt: skip
        assert f">{label}" in texts
    assert "a$x_$b" in texts
    assert (tmp_path / "axes.png").stat().st_size > 20_000


def test_the_report_opens_with_the_best_values_and_says_how_they_were_chosen(html_page, folder):
    assert "Each network is at its best schedule.rate, which its pilots chose." in html_page
    text = page.render(contents.of_runs(reader.find([folder / "grid"]), margin=0.5), "")
    opening = text.split("<section")[0]
    assert f"{folder / 'grid'}: each at its best rate" in opening
    assert rows.SAME_SEEDS in html.unescape(opening)
    # The rates' own verdicts are in the section on the axis.
    assert opening.count('<li class="verdict') == 3
    assert text.count("<h2>digits, schedule.rate=") == 3
