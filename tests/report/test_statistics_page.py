"""The worked example of docs/statistics.md agrees with the code."""

import pytest
import scipy.stats

from experiments.report import claims, groups, table
from experiments.report.statistics import Difference, Sample, correct, proportion_interval
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

EXAMPLES = 1280
COUNTS = {20: [0, 1, 0, 2], 44: [3, 1, 0, 4], 56: [40, 61, 52, 47], 110: None}


@pytest.fixture(scope="module")
def page():
    return (tiny.ROOT / "docs" / "statistics.md").read_text()


def test_the_table_is_the_reports(page, tmp_path):
    for depth, counts in COUNTS.items():
        name = f"plain-{depth}"
        listed = ", ".join(map(str, counts or ["diverged"] * 4))
        assert f"| {name} | {listed} |" in page
        errors = [100 * count / EXAMPLES for count in counts] if counts else [None] * 4
        fixture.write(
            tmp_path / name,
            fixture.flat(errors, [1.0] * 4, [1.0] * 4),
            "completed" if counts else "diverged",
            model__depth=depth,
            model__shortcut="none",
            replicates=4,
            batch_size=128,
            train_examples=EXAMPLES,
            more={} if counts else {"diverged": {str(i): 10 for i in range(4)}},
        )
    (group,) = groups.comparable(reader.find([tmp_path]))
    claim = claims.judge(group, margin=0.5)[0]
    for one in claim.comparisons:
        assert f"| {' | '.join(table.comparison_row(one))} |" in page
    assert f"| {' | '.join(table.COMPARISON_HEADINGS)} |" in page
    assert (claim.verdict, claim.detail.split()[0]) == ("confirmed", "plain-110")
    seeds = claim.comparisons[0].seeds_needed
    assert f"About {seeds} seeds per side would decide plain-44" in page


def test_the_intermediate_steps_are_right(page):
    samples = {
        depth: Sample({i: 100 * c / EXAMPLES for i, c in enumerate(counts)}, 4 * EXAMPLES)
        for depth, counts in COUNTS.items()
        if counts
    }
    samples[110] = Sample(dict.fromkeys(range(4), 100.0), 4 * EXAMPLES, frozenset(range(4)))
    deeper = [Difference.of(samples[depth], samples[20]) for depth in (44, 56, 110)]
    near, far, failed = deeper
    p_values = sorted(difference.p_value(0) for difference in deeper)
    t = scipy.stats.t.ppf(0.975, 3)
    half = t * (near.variances[0] / 4) ** 0.5
    limits = [[100 * x for x in proportion_interval(k / 5120, 5120, 0.05)] for k in (8, 3)]
    arms = 100 * 8 / 5120 - limits[0][0], limits[1][1] - 100 * 3 / 5120
    down = (arms[0] ** 2 + arms[1] ** 2) ** 0.5
    for words in (
        f"{near.value:.4f} points",
        f"variance {near.variances[0]:.5f}",
        f"h = {t:.3f} · √({near.variances[0]:.5f} / 4) = {half:.4f}",
        "[{:.4f}, {:.4f}] % and [{:.4f}, {:.4f}] %".format(*limits[0], *limits[1]),
        f"√({arms[0]:.4f}² + {arms[1]:.4f}²) = {down:.4f}",
        "[{:+.4f}, {:+.4f}]".format(*near.interval(0.05)),
        f"d = {far.value:.4f}, variance {far.variances[0]:.5f}, p = {far.p_value(0):.5f}",
        f"d = {failed.value:.4f}",
        f"{100 * proportion_interval(1.0, 4, 0.025)[0]:.2f} %",
        f"upper limit {100 * proportion_interval(3 / 5120, 4, 0.025)[1]:.2f} %",
        ", ".join(f"{p:.5f}" for p in p_values),
        "Corrected: " + ", ".join(f"{p:.3f}" for p in sorted(correct(deeper, 0)[0])),
    ):
        assert words in page
