"""The arithmetic of the report, against numbers computed by hand or by scipy."""

import itertools
import math

import pytest

from experiments.report import cells, curves, figures, groups, replicates
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import Stat
from resnet_jax.errors import UserError
from resnet_jax.runs import reader
from tests.report import fixture


def one(path, metrics, **kwargs):
    return reader.read(fixture.write(path, metrics, **kwargs))


def test_mean_and_sample_std():
    stat = Stat.of([1.0, 2.0, 4.0])
    assert stat.mean == pytest.approx(7 / 3)
    assert stat.std == pytest.approx(math.sqrt(7 / 3))  # 14/3 / 2
    assert stat.n == 3
    assert Stat.of([5.0]) == Stat(5.0, None, 1)
    assert Stat.of([]) == Stat(None, None, 0)


def test_window_mean_weights_each_row_by_the_steps_it_covers():
    points = [(10, 100.0), (14, 50.0), (20, 8.0)]
    assert replicates.window_mean(points, 0, 20) == pytest.approx((10 * 100 + 4 * 50 + 6 * 8) / 20)
    assert replicates.window_mean(points, 10, 20) == pytest.approx((4 * 50 + 6 * 8) / 10)
    # A row that starts before the window counts with its steps inside: 2 of 4.
    assert replicates.window_mean(points, 12, 20) == pytest.approx((2 * 50 + 6 * 8) / 8)
    assert replicates.window_mean(points, 20, 30) is None
    assert replicates.window_mean([], 0, 10) is None


def test_final_training_error_is_over_the_last_epoch(tmp_path):
    # 250 examples in batches of 100 are 3 steps: step 18 and the 2 steps of the row before.
    metrics = fixture.lines([2, 15, 17, 18], [90.0, 80.0, 20.0, 5.0])
    run = one(tmp_path / "a", metrics, train_examples=250, steps=18)
    assert replicates.of_run(run)[0].train_error() == pytest.approx((2 * 20 + 5) / 3)


def test_final_training_error_of_a_short_run_is_over_its_last_quarter(tmp_path):
    # An epoch of 20 steps is more than a quarter of 40: half of the row before the last.
    metrics = fixture.lines([10, 25, 35, 40], [90.0, 80.0, 20.0, 4.0])
    (replicate,) = replicates.of_run(one(tmp_path / "a", metrics, steps=40))
    assert replicate.train_error() == pytest.approx((5 * 20 + 5 * 4) / 10)
    assert replicate.final() == Observation(pytest.approx(12.0), 10 * 100)
    # Of an unfinished run, it is the last quarter so far.
    (half,) = replicates.of_run(one(tmp_path / "b", metrics[:2], steps=40, status="running"))
    assert half.train_error() == pytest.approx(80.0)


def test_final_training_error_covers_at_least_the_last_row(tmp_path):
    metrics = fixture.lines([90, 100], [90.0, 12.0])
    run = one(tmp_path / "a", metrics, train_examples=200)  # an epoch of 2 steps
    assert replicates.of_run(run)[0].train_error() == pytest.approx(12.0)
    run = one(tmp_path / "b", metrics, environment=False)  # its epoch is unknown
    assert replicates.of_run(run)[0].train_error() == pytest.approx(12.0)


def test_early_error_is_over_the_first_quarter(tmp_path):
    metrics = fixture.lines([10, 20, 40, 100], [80.0, 60.0, 10.0, 1.0])
    replicate = replicates.of_run(one(tmp_path / "a", metrics))[0]
    # 25 steps: 10 with 80 %, 10 with 60 %, and 5 of the 20 steps with 10 %.
    assert replicate.early_train_error() == pytest.approx((800 + 600 + 50) / 25)


def test_claims_count_errors_over_the_examples_of_their_window(tmp_path):
    metrics = fixture.lines([10, 20, 40, 100], [80.0, 60.0, 10.0, 1.0])
    (replicate,) = replicates.of_run(one(tmp_path / "a", metrics))  # an epoch: 20 steps of 100
    assert replicate.final() == Observation(1.0, 2000)
    assert replicate.early() == Observation(pytest.approx(58.0), 2500)
    (queued,) = replicates.of_run(one(tmp_path / "b", [], status="queued"))
    assert (queued.final(), queued.early()) == (None, None)


def test_a_replicate_that_diverged_has_the_worst_error(tmp_path):
    metrics = fixture.lines([10, 20, 40], [80.0, 60.0, None])
    for at in (15, 30, None):
        more = {"diverged": {"0": at}} if at else {}
        run = one(tmp_path / str(at), metrics, status="diverged", more=more)
        (replicate,) = replicates.of_run(run)
        assert replicate.final() == Observation(100.0, 2000, diverged=True)
        # Steps 20 to 25 are unknown, since the row that covers them is null.
        assert replicate.early() == Observation(100.0, 2500, diverged=True)


def test_validation_error_prefers_population_statistics(tmp_path):
    with_exact = fixture.lines(
        [100], [5.0], validation__error=20.0, validation__error_population=18.0
    )
    without = fixture.lines([50, 100], [5.0, 4.0], validation__error=20.0)
    assert replicates.of_run(one(tmp_path / "a", with_exact))[0].validation_error() == 18.0
    assert replicates.of_run(one(tmp_path / "b", without))[0].validation_error() == 20.0
    assert replicates.of_run(one(tmp_path / "c", fixture.lines([5], [1.0])))[0].test_error() is None


def test_replicates_come_out_of_lists_with_their_seeds(tmp_path):
    metrics = fixture.lines([100], [[1.0, 2.0, 6.0]], test__error=[10.0, 11.0, 15.0])
    run = one(tmp_path / "a", metrics, replicates=3, seed=7)
    assert [r.seed for r in replicates.of_run(run)] == [7, 8, 9]
    cell = cells.pool([run])
    assert cell.stat(Replicate.train_error) == Stat(3.0, pytest.approx(math.sqrt(7)), 3)
    assert cell.stat(Replicate.test_error) == Stat(12.0, pytest.approx(math.sqrt(7)), 3)


def test_a_list_of_the_wrong_length_is_named(tmp_path):
    run = one(tmp_path / "a", fixture.lines([100], [[1.0, 2.0]]), replicates=3)
    with pytest.raises(UserError, match=r"2 values per row, but config\.json has 3 replicates"):
        replicates.of_run(run)


def test_curves_are_mean_and_std_over_replicates(tmp_path):
    metrics = fixture.lines([10, 20], [[10.0, 20.0], [4.0, 8.0]], validation__error=[6.0, 6.0])
    training, validation = curves.of_cell(
        cells.pool([one(tmp_path / "a", metrics, replicates=2)]), window=0
    )
    assert (training.steps, training.mean, training.n) == ([10, 20], [15.0, 6.0], [2, 2])
    assert training.std == pytest.approx([10 / math.sqrt(2), 4 / math.sqrt(2)])
    assert (validation.steps, validation.mean, validation.std) == ([20], [6.0], [0.0])


def test_curves_of_replicates_that_log_at_different_steps_meet_at_common_ones(tmp_path):
    often = fixture.lines([10, 20, 30, 40], [9.0, 8.0, 7.0, 6.0])
    seldom = fixture.lines([20, 40], [4.0, 2.0])
    shorter = [
        one(tmp_path / "a", often, status="running", seed=0),
        one(tmp_path / "b", seldom[:1], status="running", seed=1, log__every=20),
    ]
    (training,) = curves.of_cell(cells.pool(shorter), window=0)
    # Step 10 is missing in a run that went further; after 20 only the other is left.
    assert training.steps == [20, 30, 40]
    assert training.mean == [6.0, 7.0, 6.0]
    assert training.std[1:] == [None, None]
    assert training.n == [2, 1, 1]


def test_window_is_a_trailing_mean_of_the_training_error_only(tmp_path):
    metrics = fixture.lines([10, 20, 30], [60.0, 30.0, 0.0])
    for row in metrics:
        row["validation/error"] = row["train/error"]
    cell = cells.pool([one(tmp_path / "a", metrics)])
    training, validation = curves.of_cell(cell, window=20)
    assert training.mean == pytest.approx([60.0, 45.0, 15.0])
    assert validation.mean == pytest.approx([60.0, 30.0, 0.0])
    assert curves.of_cell(cell, window=5)[0].mean == pytest.approx([60.0, 30.0, 0.0])


def test_one_depth_has_one_colour_and_deeper_is_darker():
    palette = curves.colours([20, 32, 44, 56, 110])
    luminance = [
        sum(w * int(palette[d][i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5)))
        for d in sorted(palette)
    ]
    assert luminance == sorted(luminance, reverse=True)
    assert len(set(palette.values())) == 5


def test_the_start_of_training_does_not_set_the_scale(tmp_path):
    metrics = fixture.lines(range(5, 101, 5), [95.0, 90.0, 80.0] + [20.0] + [10.0] * 16)
    fixture.write(tmp_path / "s" / "plain", metrics, model__shortcut="none")
    (group,) = groups.comparable(reader.find([tmp_path / "s"]))
    drawn = curves.of_cell(group.cells[0], window=0)
    assert curves.y_top(drawn) == pytest.approx(1.05 * 20.0)
    assert curves.y_top([]) == 100.0


def test_a_panel_without_curves_has_a_reason(tmp_path):
    fixture.write(tmp_path / "s" / "a", [], status="queued", model__shortcut="none")
    (group,) = groups.comparable(reader.find([tmp_path / "s"]))
    assert curves.emptiness(group, "Plain nets") == "nothing logged yet"
    assert curves.emptiness(group, "Residual nets") == "no such nets in these runs"


def test_labels_of_many_depths_do_not_overlap():
    assert curves.depth_ticks([20, 32, 44, 56, 110], is_log=False) == [20, 32, 44, 56, 110]
    assert curves.depth_ticks([20], is_log=True) == [20]
    many = list(range(8, 152, 6))
    for is_log, place in ((False, float), (True, math.log)):
        ticks = curves.depth_ticks(many, is_log)
        places = [place(tick) for tick in ticks]
        span = place(many[-1]) - place(many[0])
        assert ticks[-1] == many[-1]
        assert len(ticks) > 5
        assert min(b - a for a, b in itertools.pairwise(places)) >= 0.07 * span


def test_a_legend_of_24_depths_stays_within_the_figure(tmp_path):
    for depth in range(8, 152, 6):
        fixture.write(tmp_path / "s" / str(depth), fixture.flat(5.0), model__depth=depth)
    figure = figures._curves_figure(groups.comparable(reader.find([tmp_path / "s"])), window=0)
    figure.draw_without_rendering()
    (legend,) = figure.subfigs[0].legends
    assert len(legend.get_texts()) == 24 + 2
    box = legend.get_window_extent()
    assert box.height <= figure.bbox.height
    assert box.width <= 0.5 * figure.bbox.width
