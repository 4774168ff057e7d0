"""Rankings of names and of named variants, and the smallest dose that cures."""

import itertools
import json

import pytest

from experiments.report import contents, headlines
from experiments.report.axes import panels, rows, series
from experiments.report.statistics import Difference, Sample
from resnet_jax.runs import reader
from tests.report import fixture


def sample(errors):
    return Sample(dict(enumerate(errors)), 2000.0 * len(errors))


def test_names_are_ranked_with_intervals(tmp_path):
    names = {"sgd": 30.0, "adam": 5.0, "adamw": 5.1}
    fixture.along(
        tmp_path, "optimizer.name", names, lambda d, s, name: names[name],
        depths=(56,), shortcuts=("none",),
    )  # fmt: skip
    (section,) = fixture.sections(tmp_path)
    assert section.across.axis.name == "optimizer.name"
    (ranking,) = section.rankings
    ranks = ranking.ranks
    assert (ranking.networks, ranking.reference.label) == ("plain-56", "adam")
    assert [rank.value.label for rank in ranks] == ["adam", "adamw", "sgd"]
    assert (ranks[0].minus, ranks[0].p) == (None, None)
    assert ranks[1].minus.difference == pytest.approx(0.1)
    low, high = ranks[1].minus.ci95
    assert low < 0 < high
    assert ranks[2].minus.ci95[0] > 20
    assert ranks[2].p < 0.001 < 0.05 < ranks[1].p
    assert [v.label for v in section.across.axis.values] == ["adam", "adamw", "sgd"]


VARIANTS = {
    "base": (30.0, {}),
    "no_norm": (60.0, {"model__norm": "none"}),
    "no_norm+dirac": (9.0, {"model__norm": "none", "model__init": "dirac"}),
    "residual": (4.0, {"model__shortcut": "A"}),
}


def write_variants(folder, names, rates, **more):
    for name, rate in itertools.product(names, rates):
        mean, changes = VARIANTS[name]
        errors = [mean + 100 * abs(rate - 0.1), mean + 0.1, mean + 0.2]
        shape = {"model__depth": 56, "model__shortcut": "none"} | changes
        fixture.write(
            folder / f"{name}-{rate}", fixture.flat(errors), replicates=3, variant=name,
            schedule__rate=rate, **shape, **more,
        )  # fmt: skip


def test_named_variants_are_one_axis_and_ranked_against_the_base(tmp_path):
    write_variants(tmp_path / "s", VARIANTS, (0.1,))
    (section,) = fixture.sections(tmp_path / "s")
    axis = section.across.axis
    assert (axis.keys, axis.name) == (("variant", "model.init", "model.norm"), "variant")
    assert section.title == "Along variant: 4 values"
    shown = {value.label: value.note for value in axis.values}
    assert shown == {
        "residual": "", "no_norm+dirac": "init=dirac, norm=none", "base": "",
        "no_norm": "norm=none",
    }  # fmt: skip
    (ranking,) = section.rankings
    assert (ranking.networks, ranking.reference.label) == ("56 layers", "base")
    ranks = {rank.value.label: rank for rank in ranking.ranks}
    assert list(ranks) == ["residual", "no_norm+dirac", "base", "no_norm"]
    assert ranks["base"].minus is None
    assert ranks["no_norm"].minus.difference == pytest.approx(30)
    # Holm: the largest of three p-values is tested at 5 %, the smallest at a third of it.
    want = Difference.of(sample([60, 60.1, 60.2]), sample([30, 30.1, 30.2]))
    assert ranks["no_norm"].p == pytest.approx(max(3 * want.p_value(0), ranks["residual"].p))
    assert ranking.summary == (
        "Training error, compared with base: lower: residual, no_norm+dirac; higher: no_norm."
    )
    assert section.origin == rows.VARIANTS
    report = contents.of_runs(reader.find([tmp_path / "s"]), margin=0.5)
    (headline,) = headlines.of(report)
    assert (headline.lead, headline.judgements) == (ranking.summary, ())
    (ranked,) = [table for table in section.tables if table.title == "56 layers: ranked"]
    assert ranked.headings[3] == "minus base, points"
    assert [row[0].text for row in ranked.rows] == list(ranks)


def test_variants_with_a_tuned_rate_are_lines_of_their_own(tmp_path):
    names = ("base", "no_norm")
    write_variants(tmp_path / "s" / "pilots", names, (0.01, 0.1), seed=100)
    write_variants(tmp_path / "s", names, (0.1,))
    tuning = {"over": {"schedule.rate": [0.01, 0.1]}, "by": "training_error"}
    (tmp_path / "s" / "pilots" / "tuning.json").write_text(json.dumps(tuning))
    variants, rates = fixture.sections(tmp_path / "s")
    assert variants.across.axis.name == "variant"
    (ranked,) = variants.tables
    assert [row[1].note for row in ranked.rows] == ["rate=0.1"] * 2
    lines = {line.name: line.at_best for line in rates.across.lines}
    assert list(lines) == ["plain-56, base", "plain-56, no_norm"]
    seeds = [[replicate.seed for replicate in cell.replicates] for cell in lines.values()]
    assert seeds == [[0, 1, 2]] * 2


def spread(mean, seeds):
    return [mean + i for i in range(seeds)]


def test_a_study_that_chooses_by_validation_error_compares_test_errors(tmp_path):
    """All variants train to 0 %, as in a study of transfer."""
    tests = {"no_norm": 40.0, "base": 20.0, "residual": 10.0}
    for name, error in tests.items():
        shape = {"model__depth": 56, "model__shortcut": "none"} | VARIANTS[name][1]
        for folder, seeds, test in (("pilots", 2, error + 30), (".", 3, error)):
            for rate in (0.01, 0.1) if folder == "pilots" else (0.1,):
                validated = spread(error + 5 - 10 * rate, seeds)
                fixture.write(
                    tmp_path / "s" / folder / f"{name}-{rate}",
                    fixture.flat([0.0] * seeds, validated, spread(test, seeds)),
                    seed=100 * (folder == "pilots"), replicates=seeds, variant=name,
                    schedule__rate=rate, **shape,
                )  # fmt: skip
    tuning = {"over": {"schedule.rate": [0.01, 0.1]}, "by": "validation_error"}
    (tmp_path / "s" / "pilots" / "tuning.json").write_text(json.dumps(tuning))
    variants, rates = fixture.sections(tmp_path / "s")

    (ranking,) = variants.rankings
    assert [rank.value.label for rank in ranking.ranks] == ["residual", "base", "no_norm"]
    assert ranking.ranks[2].minus.difference == pytest.approx(20.0)
    assert ranking.summary == "Test error, compared with base: lower: residual; higher: no_norm."
    (table,) = variants.tables
    assert table.headings[1] == "test error, %"
    assert [row[1].text for row in table.rows] == [
        "11.00 ± 1.00", "21.00 ± 1.00", "41.00 ± 1.00"
    ]  # fmt: skip

    # The pilots are shown with the error that chose among them, and so are the fresh seeds.
    errors = rows.errors(rates.across)
    assert errors.title == "Validation error by network and rate"
    shown = {row[0].text: [field.text for field in row[1:]] for row in errors.rows}
    assert shown["plain-56, base"] == ["25.40 ± 0.71", "24.50 ± 0.71", "0.1", "25.00 ± 1.00"]
    quantities = [series.quantities(each.across)[0].name for each in (variants, rates)]
    assert quantities == ["test error", "validation error"]
    assert list(series.y_ranges([variants.across, rates.across])) == [
        "test error", "training loss", "validation error"
    ]  # fmt: skip


# -------------------------------------------------------------------------- doses and cures


def test_the_smallest_value_that_cures_has_an_interval(tmp_path):
    doses = (0.0, 0.25, 0.5, 0.75, 1.0)
    # Points of error above the shallowest net; the counting error of 0.1 points is wider than 0.
    rises = {20: (9.0, 2.0, 0.4, 0.1, -2.0), 56: (20.0, 0.3, 9.0, 0.5, -2.0), 110: (9.0,) * 5}
    fixture.along(
        tmp_path / "s", "model.shortcut_scale", doses,
        lambda depth, shortcut, dose: 5 + (rises[depth][doses.index(dose)] if depth > 8 else 0),
        depths=(8, 20, 56, 110), shortcuts=("A",),
    )  # fmt: skip
    (section,) = fixture.sections(tmp_path / "s", margin=0.5)
    # A line is of one kind of net, although its net with the value 0 is plain.
    assert {(line.kind, line.shortcut) for line in section.across.lines} == {("residual", "A")}
    shown = {
        cure.line.name: [v and v.number for v in (cure.value, cure.above, cure.at_most)]
        for cure in section.cures
    }
    # resnet-56-A is worse again at 0.5, so that 0.25 does not count.
    assert shown == {
        "resnet-20-A": [0.5, 0.25, 1.0], "resnet-56-A": [0.75, 0.5, 1.0],
        "resnet-110-A": [None, 1.0, None],
    }  # fmt: skip
    assert {cure.baseline.name for cure in section.cures} == {"resnet-8-A"}
    report = contents.of_runs(reader.find([tmp_path / "s"]), margin=0.5)
    opening = {one.label.split(": ")[1]: one.lead for one in headlines.of(report)}
    assert opening["smallest shortcut_scale that cures"] == (
        "resnet-20-A: 0.5 (certainly above 0.25); resnet-56-A: 0.75 (certainly above 0.5); "
        "resnet-110-A: none (certainly above 1)."
    )
    # Claim 1 is tested at 0 alone and claim 2 at the others; neither is listed as not tested.
    assert not {"1", "2"} & headlines.not_tested(report.judgements).keys()
    assert {"3", "4"} <= headlines.not_tested(report.judgements).keys()
    (table,) = [table for table in section.tables if table.title.startswith("Smallest")]
    assert [field.text for field in table.rows[0]] == [
        "resnet-20-A", "resnet-8-A", "0.5", "0.25", "1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.02, 3.0, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]),
        (2e-5, 1.5, ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_a_long_axis_of_losses_has_powers_of_ten_alone(low, high, labels):
    assert panels._scale(series.Range(low, high, is_log=True))["ticktext"] == labels
