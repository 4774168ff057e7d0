"""Claims about signals inside networks, from runs whose signals are known."""

import math

import pytest
import scipy.stats

from experiments.report import claims, groups
from experiments.report.cells import CellResult
from experiments.report.signals import panels
from experiments.report.signals.profiles import (
    first_and_last,
    main_path,
    mean_profile,
    profiles,
)
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

LAYERS = ["stem_conv", "stage1_block1/conv1", "stage1_block2/conv1", "stage1_block10/conv1"]
STEPS = (0, 50)


def write(folder, shortcut, depth, gradients, responses=(1.0, 1.0), status="completed", **changes):
    """Writes a run; `gradients` are the first layer's norms of each seed, by step."""
    seeds = len(responses)
    rows = {
        row["step"]: row for row in fixture.flat([20.0] * seeds, [20.0] * seeds, [20.0] * seeds)
    }
    for step in STEPS:
        row = rows.setdefault(step, {"step": step})
        # As jit returns them, names are sorted: block 10 comes before block 2.
        for layer in sorted(LAYERS):
            norm = gradients[step] if layer == "stem_conv" else [7.0] * seeds
            row[f"signals/gradient_norm/{layer}"] = [0.1 * n if "10" in layer else n for n in norm]
            response = responses if step == STEPS[-1] else [5.0] * seeds
            row[f"signals/response_std/{layer.replace('conv', 'norm')}"] = list(response)
        row["signals/gradient_norm/logits"] = [1e9] * seeds
        row["signals/gradient_norm/stage1_block1/shortcut_conv"] = [1e9] * seeds
        row["signals/gradient_norm/stage1_block10/se_conv2"] = [1e9] * seeds
        row["signals/response_std/stage1_block1/shortcut_norm"] = [1e9] * seeds
    fixture.write(
        folder / f"{shortcut}-{depth}", [rows[step] for step in sorted(rows)], status,
        model__shortcut=shortcut, model__depth=depth, replicates=seeds, **changes,
    )  # fmt: skip


def judged(folder):
    (group,) = groups.comparable(reader.find([folder]))
    return {judgement.id: judgement for judgement in claims.judge(group, 0.5)}


def t_interval(values):
    own = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return pytest.approx((own.low, own.high))


def test_a_profile_is_in_the_order_of_the_forward_pass(tmp_path):
    write(tmp_path, "none", 20, {0: [1.0, 2.0], 50: [3.0, None]})  # null: it was not finite
    (group,) = groups.comparable(reader.find([tmp_path]))
    cell: CellResult = group.cells[0]
    own = profiles(cell.replicates[1], "gradient_norm")
    assert list(own) == [0, 50]
    assert list(own[0]) == ["stem_conv", "stage1_block1/shortcut_conv", "stage1_block1/conv1",
                            "stage1_block2/conv1", "stage1_block10/conv1",
                            "stage1_block10/se_conv2", "logits"]  # fmt: skip
    assert math.isnan(own[50]["stem_conv"])
    assert first_and_last(own[50]) is None  # the second layer does not stand in for the first
    assert list(main_path(own[0])) == LAYERS
    assert first_and_last(own[0]) == pytest.approx((2.0, 0.7))
    assert mean_profile(cell, "gradient_norm", 0)["stem_conv"] == pytest.approx(2**0.5)
    assert math.isnan(mean_profile(cell, "gradient_norm", 50)["stem_conv"])


@pytest.mark.parametrize(
    ("shallow", "deep", "vanish", "explode"),
    [
        # First-layer norms of two seeds at step 50; the last layer's is 0.7.
        ((1.0, 1.1), (1.0, 1.1), "confirmed", "confirmed"),
        ((1.0, 1.1), (1e-4, 1.1e-4), "rejected", "confirmed"),
        ((1.0, 1.1), (3e5, 3.1e5), "confirmed", "rejected"),
        ((1.0, 1.1), (0.004, 0.02), "undecided", "confirmed"),
    ],
)
def test_gradients_are_healthy_if_every_plain_net_has_healthy_ones(
    tmp_path, shallow, deep, vanish, explode
):
    write(tmp_path, "none", 20, {0: [1.0, 1.0], 50: list(shallow)})
    write(tmp_path, "none", 56, {0: [1.0, 1.0], 50: list(deep)})
    write(tmp_path, "A", 56, {0: [1e-9, 1e-9], 50: [1e9, 1e9]})  # residual nets do not count
    found = judged(tmp_path)
    assert (found["3"].verdict, found["3b"].verdict) == (vanish, explode)
    for id in ("3", "3b"):
        first, second = found[id].comparisons
        assert (first.network, second.network) == ("plain-20, first layer", "plain-56, first layer")


def test_the_interval_is_that_of_the_logarithms_over_seeds(tmp_path):
    norms = [0.02, 0.03, 0.05]
    write(tmp_path, "none", 20, {0: [1.0] * 3, 50: norms}, (1.0,) * 3)
    finding = judged(tmp_path)["3"]
    (own,) = finding.comparisons
    logarithms = [math.log10(norm / 0.7) for norm in norms]
    assert own.difference == pytest.approx(sum(logarithms) / 3)
    assert own.ci95 == t_interval(logarithms)
    assert (own.threshold, own.result, finding.verdict) == (-2, "above", "confirmed")
    assert finding.detail.startswith(
        "plain-20, first layer: 0.0311 against last layer, at step 50: 0.7"
    )


def test_claims_about_networks_that_have_not_ended_or_have_no_batch_norm(tmp_path):
    healthy = {0: [1.0, 1.0], 50: [1.0, 1.0]}
    for shortcut, depth in (("none", 20), ("none", 56), ("A", 20), ("A", 56)):
        write(tmp_path / "open", shortcut, depth, healthy, status="running")
        write(tmp_path / "unnormalised", shortcut, depth, healthy, model__norm="none")
    still_open = judged(tmp_path / "open")
    assert {still_open[id].verdict for id in ("3", "3b", "7a", "7b")} == {"undecided"}
    found = judged(tmp_path / "unnormalised")
    assert found["3"].verdict == found["3b"].verdict == "not tested"
    assert "model.norm='batch'" in found["3"].detail
    assert found["7a"].verdict != "not tested"
    assert "model.norm='none'" in still_open["3c"].detail


def test_a_gradient_of_zero_has_vanished(tmp_path):
    write(tmp_path, "none", 20, {0: [1.0, 1.1], 50: [0.0, 0.0]})
    assert judged(tmp_path)["3"].verdict == "rejected"
    assert first_and_last({"stem_conv": 0.0, "conv1": 0.0}) is None
    assert first_and_last({"stem_conv": 1.0, "conv1": math.nan}) is None
    assert first_and_last({"stem_conv": 1.0}) is None


@pytest.mark.parametrize(
    ("deep", "verdict"),
    [
        ((1e-4, 1.2e-4), "confirmed"),
        ((3e5, 3.1e5), "confirmed"),
        ((0.5, 0.6), "rejected"),
        ((70.0, 1.2e4), "undecided"),
    ],
)
def test_without_batch_norm_the_deepest_plain_net_decides(tmp_path, deep, verdict):
    healthy = {0: [0.7, 0.7]}  # as large as the last
    write(tmp_path, "none", 20, healthy | {50: [1e-9, 1e-9]}, model__norm="none")
    write(tmp_path, "none", 56, healthy | {50: list(deep)}, model__norm="none")
    found = judged(tmp_path)
    assert (found["3c"].verdict, found["3"].verdict) == (verdict, "not tested")
    (own,) = found["3c"].comparisons
    assert own.network.startswith("plain-56")
    assert own.difference == pytest.approx(sum(abs(math.log10(x / 0.7)) for x in deep) / 2)


def test_the_extreme_step_of_each_seed_counts(tmp_path):
    write(tmp_path, "none", 20, {0: [700.0, 1.0], 50: [1.0, 1400.0]})
    (own,) = judged(tmp_path)["3b"].comparisons
    assert own.difference == pytest.approx((3 + math.log10(2000)) / 2)
    assert "at step 0 to 50" in own.baseline


@pytest.mark.parametrize(
    ("plain", "shallow", "deep", "verdicts"),
    [
        ((1.0, 1.1), (0.5, 0.61), (0.3, 0.42), ("confirmed", "confirmed")),
        ((1.0, 1.1), (1.5, 1.61), (0.3, 0.42), ("rejected", "confirmed")),
        ((1.0, 1.1), (0.5, 0.61), (0.8, 0.92), ("confirmed", "rejected")),
        ((1.0, 1.1), (0.5, 0.61), (0.2, 1.4), ("undecided", "undecided")),
    ],
)
def test_responses_at_the_last_logged_step(tmp_path, plain, shallow, deep, verdicts):
    healthy = {0: [1.0, 1.0], 50: [1.0, 1.0]}
    for depth in (20, 56):
        write(tmp_path, "none", depth, healthy, plain)
    write(tmp_path, "A", 20, healthy, shallow)
    write(tmp_path, "A", 56, healthy, deep)
    found = judged(tmp_path)
    assert (found["7a"].verdict, found["7b"].verdict) == verdicts
    first, second = found["7a"].comparisons
    assert (first.network, first.baseline) == ("resnet-20-A", "plain-20")
    assert second.difference == pytest.approx((sum(deep) - sum(plain)) / 2)
    (own,) = found["7b"].comparisons
    assert own.difference == pytest.approx((sum(deep) - sum(shallow)) / 2)
    assert own.ci95 == t_interval([a - b for a, b in zip(deep, shallow, strict=True)])
    assert "at step 50" in found["7a"].detail


def test_the_figure_is_about_responses_after_the_convolution(tmp_path):
    healthy = {0: [1.0, 1.0], 50: [1.0, 1.0]}
    for shortcut in ("none", "A"):
        write(tmp_path, shortcut, 20, healthy, model__activation="pre")
    found = judged(tmp_path)
    assert found["7a"].verdict == "not tested"
    assert "model.activation='post'" in found["7a"].detail


def test_a_report_draws_signals_if_there_are_any(tmp_path):
    fixture.study(tmp_path / "with", depths=(8, 14), signals=True)
    fixture.study(tmp_path / "without", depths=(8, 14))
    for name in ("with", "without"):
        assert tiny.compare(tmp_path / name, f"--out={tmp_path / name / 'report'}") == 0
        assert (tmp_path / name / "report" / "signals.svg").exists() == (name == "with")
    (group,) = groups.comparable(reader.find([tmp_path / "with"]))
    by_title = {panel.title: panel for panel in panels.of_group(group)}
    assert len(by_title) == 7
    first = by_title["Gradients at step 10"]
    assert [line.cell.name for line in first.lines] == ["plain-8", "plain-14", "resnet-8-A",
                                                        "resnet-14-A"]  # fmt: skip
    assert first.lines[1].labels[:2] == ["stem_conv", "stage1_block1/conv1"]
    assert first.lines[1].labels[-1] == "stage3_block2/conv2"
    assert first.lines[1].x == list(range(1, 14))
    assert first.y_range(list(by_title.values())) == by_title["Gradients at step 990"].y_range(
        list(by_title.values())
    )
    ratio = by_title["First over last gradient"].lines[1]
    assert ratio.x == [10, 990]
    assert ratio.y[0] == pytest.approx(1.2**12, rel=0.02)
    assert by_title["Dead units"].lines[0].y == [0.0, 0.0]
