"""Every verdict on every claim, from cells whose training errors are known."""

import pytest
import scipy.stats

from experiments.report import claims, groups
from resnet_jax import runs
from tests import report_fixture as fixture


def judged(folder, nets, margin=0.5):
    """Judges cells given as {(shortcut, depth): training error of each replicate}."""
    for (shortcut, depth), errors in nets.items():
        several = len(errors) > 1
        other = [1.0] * len(errors) if several else 1.0
        fixture.write(
            folder / f"{shortcut}-{depth}",
            fixture.flat(errors if several else errors[0], other, other),
            model__shortcut=shortcut,
            model__depth=depth,
            replicates=len(errors),
        )
    (group,) = groups.make(runs.find([folder]))
    return {claim.id: claim for claim in claims.judge(group, margin)}


@pytest.mark.parametrize(
    ("deep", "verdict"),
    [
        ([20.0, 21.0, 22.0], "confirmed"),
        ([1.0, 2.0, 3.0], "rejected"),
        ([8.0, 11.0, 14.0], "undecided"),
    ],
)
def test_claim_1(tmp_path, deep, verdict):
    shallow = [9.0, 10.0, 11.5]
    middle = [50.0, 50.0, 50.0]  # neither deepest nor shallowest
    nets = {("none", 20): shallow, ("none", 32): middle, ("none", 56): deep}
    claim = judged(tmp_path, nets)[1]
    want = scipy.stats.ttest_ind(deep, shallow, equal_var=False).confidence_interval(0.95)
    assert claim.verdict == verdict
    assert claim.difference == pytest.approx(sum(deep) / 3 - sum(shallow) / 3)
    assert claim.ci95 == pytest.approx((want.low, want.high))


@pytest.mark.parametrize(
    ("deep", "margin", "verdict"),
    [
        ([10.25, 10.3, 10.35], 0.5, "confirmed"),  # a rise, but below the margin
        ([10.25, 10.3, 10.35], 0.1, "rejected"),
        ([10.4, 10.5, 10.6], 0.5, "undecided"),
        ([8.0, 8.1, 8.2], 0.0, "confirmed"),
        ([14.0, 14.1, 14.2], 0.5, "rejected"),
    ],
)
def test_claim_2(tmp_path, deep, margin, verdict):
    nets = {("A", 20): [9.99, 10.0, 10.01], ("A", 56): deep}
    assert judged(tmp_path, nets, margin)[2].verdict == verdict


def test_claim_2_takes_a_then_b_then_c(tmp_path):
    flat, rise = [5.0, 5.0], [30.0, 30.0]
    nets = {("B", 20): flat, ("B", 56): rise, ("C", 20): flat, ("C", 56): flat}
    assert judged(tmp_path / "b", nets)[2].verdict == "rejected"
    nets |= {("A", 20): flat, ("A", 56): flat}
    assert judged(tmp_path / "a", nets)[2].verdict == "confirmed"
    # One depth of A alone says nothing about depth.
    one_of_a = {("A", 20): flat, ("B", 20): flat, ("B", 56): rise}
    assert judged(tmp_path / "one", one_of_a)[2].verdict == "rejected"


@pytest.mark.parametrize(
    ("plain", "verdict"),
    [
        ([30.0, 31.0], "confirmed"),
        ([3.0, 3.5], "rejected"),
        ([19.0, 22.0], "undecided"),
    ],
)
def test_claim_4(tmp_path, plain, verdict):
    residual = [20.0, 20.5]
    nets = {("none", 8): [99.0, 99.0], ("none", 20): plain, ("A", 20): residual}
    nets |= {("none", 32): [0.0, 0.0], ("A", 32): [50.0, 50.0], ("B", 20): [0.0, 0.0]}
    claim = judged(tmp_path, nets)[4]
    assert claim.verdict == verdict
    assert claim.difference == pytest.approx(sum(plain) / 2 - 20.25)
    assert "plain-20" in claim.detail
    assert "resnet-20-A" in claim.detail


def test_claim_4_looks_at_the_first_quarter(tmp_path):
    for shortcut, errors in (("none", (80.0, 1.0)), ("A", (20.0, 50.0))):
        metrics = fixture.lines([25, 100], [[e, e + 1] for e in errors])
        fixture.write(tmp_path / shortcut, metrics, model__shortcut=shortcut, replicates=2)
    (group,) = groups.make(runs.find([tmp_path]))
    assert claims.judge(group, 0.5)[2].difference == pytest.approx(60.0)


def test_one_replicate_decides_nothing(tmp_path):
    nets = {("none", 20): [5.0], ("none", 56): [50.0, 51.0], ("A", 20): [4.0], ("A", 56): [4.0]}
    found = judged(tmp_path, nets)
    assert {claim.verdict for claim in found.values()} == {"undecided"}
    assert {claim.ci95 for claim in found.values()} == {None}
    assert found[1].difference == pytest.approx(45.5)
    assert "two replicates on each side" in found[1].detail


def test_missing_cells_decide_nothing(tmp_path):
    found = judged(tmp_path, {("none", 20): [5.0, 6.0]})
    assert [found[i].verdict for i in (1, 2, 4)] == ["undecided"] * 3
    assert [found[i].difference for i in (1, 2, 4)] == [None] * 3
    assert found[1].detail == "needs two depths of plain nets, but only plain-20 has completed"
    assert found[2].detail == "needs two depths of residual nets, but no residual net has completed"
    assert "a plain and a residual net of one depth" in found[4].detail


def test_no_spread_at_all_still_decides(tmp_path):
    found = judged(tmp_path, {("none", 20): [5.0, 5.0], ("none", 56): [7.0, 7.0]})
    assert (found[1].verdict, found[1].ci95) == ("confirmed", (2.0, 2.0))


def test_a_diverged_replicate_is_no_replicate(tmp_path):
    for depth, more in ((20, {}), (56, {"diverged": {"1": 60}})):
        metrics = fixture.flat([5.0, 6.0], [1.0, 1.0], [1.0, 1.0])
        fixture.write(
            tmp_path / str(depth),
            metrics,
            model__shortcut="none",
            model__depth=depth,
            replicates=2,
            more=more,
        )
    (group,) = groups.make(runs.find([tmp_path]))
    claim = claims.judge(group, 0.5)[0]
    assert (claim.verdict, claim.ci95) == ("undecided", None)
