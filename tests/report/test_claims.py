"""Every verdict on every claim, from cells whose training errors are known."""

import pytest
import scipy.stats

from experiments.report import claims, groups
from experiments.report.claims import registry
from resnet_jax.runs import reader
from tests.report import fixture

MANY = 10_000_000  # examples per batch: enough for the counting error to vanish
DIVERGED = None
ERROR_CLAIMS = ("1", "2", "4")


def write_cell(folder, shortcut, depth, errors, *, batch_size, status=None, at=60, seed=0):
    """Writes one run whose seeds have these errors; None is a seed that diverged."""
    gone = {str(i): at for i, error in enumerate(errors) if error is DIVERGED}
    rows = fixture.flat(errors, [1.0] * len(errors), [1.0] * len(errors))
    for row in rows:
        if row["step"] < at:
            row["train/error"] = [80.0 if error is None else error for error in errors]
    if len(errors) == 1:
        rows = [{k: v[0] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    fixture.write(
        folder / f"{shortcut}-{depth}-{seed}",
        rows,
        status or ("diverged" if len(gone) == len(errors) else "completed"),
        model__shortcut=shortcut,
        model__depth=depth,
        replicates=len(errors),
        batch_size=batch_size,
        seed=seed,
        train_examples=10 * batch_size,
        more={"diverged": gone},
    )


def judged(folder, nets, margin=0.5, batch_size=MANY):
    """Judges cells given as {(shortcut, depth): training error of each replicate}."""
    for (shortcut, depth), errors in nets.items():
        write_cell(folder, shortcut, depth, errors, batch_size=batch_size)
    return verdicts(folder, margin)


def verdicts(folder, margin=0.5):
    (group,) = groups.comparable(reader.find([folder]))
    return {judgement.id: judgement for judgement in claims.judge(group, margin)}


def test_every_claim_is_registered_with_its_words():
    registered = {claim.id: claim for claim in claims.all_claims()}
    assert list(registered) == sorted(registered)
    assert registered.keys() >= {"1", "2", "3", "4"}
    for claim in registered.values():
        assert claim.source
        assert (claim.judge is None) == (not claim.words) == (not claim.rule)
        assert not claim.words or set(claim.words) >= {"confirmed", "rejected", "undecided"}
    with pytest.raises(ValueError, match="claim 1 is registered twice"):
        registry.register(registered["1"])


def test_a_claim_without_its_data_is_not_tested(tmp_path):
    claim = judged(tmp_path, {("none", 20): [5.0, 6.0], ("none", 56): [5.0, 6.0]})["3"]
    assert claim.verdict == "not tested"
    assert claim.detail.startswith("needs the norms of every layer's gradients")


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
    claim = judged(tmp_path, {("none", 20): shallow, ("none", 56): deep})["1"]
    want = scipy.stats.ttest_rel(deep, shallow).confidence_interval(0.95)
    assert claim.verdict == verdict
    assert claim.difference == pytest.approx(sum(deep) / 3 - sum(shallow) / 3)
    assert claim.ci95 == pytest.approx((want.low, want.high), abs=1e-2)
    assert "paired by seed" in claim.detail


def test_other_seeds_are_not_paired(tmp_path):
    deep, shallow = [20.0, 21.0, 22.0], [9.0, 10.0, 11.5]
    write_cell(tmp_path, "none", 20, shallow, batch_size=MANY)
    write_cell(tmp_path, "none", 56, deep, batch_size=MANY, seed=1)
    claim = verdicts(tmp_path)["1"]
    want = scipy.stats.ttest_ind(deep, shallow, equal_var=False).confidence_interval(0.95)
    assert claim.ci95 == pytest.approx((want.low, want.high), abs=1e-2)
    assert "paired" not in claim.detail


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
    assert judged(tmp_path, nets, margin)["2"].verdict == verdict


LOW, HIGH = [5.0, 5.2, 5.1, 4.9], [30.0, 31.0, 30.5, 29.0]


@pytest.mark.parametrize(("shortcut", "id"), [("A", "2"), ("none", "1")])
def test_every_depth_is_compared_with_the_shallowest(tmp_path, shortcut, id):
    other = [5.1, 5.0, 5.2, 5.0]
    nets = {(shortcut, 20): LOW, (shortcut, 44): HIGH, (shortcut, 56): other}
    claim = judged(tmp_path, nets)[id]
    assert claim.verdict == ("rejected" if id == "2" else "confirmed")
    assert claim.detail.startswith("resnet-44-A" if id == "2" else "plain-44")
    assert claim.difference == pytest.approx(30.125 - 5.05)
    first, second = claim.comparisons
    assert first.baseline.split("-")[1] == second.baseline.split("-")[1] == "20"
    # The first comparison is tested at 5 % / 2, and its p-value is doubled.
    alone = scipy.stats.ttest_rel(HIGH, [e + claim.comparisons[0].threshold for e in LOW])
    assert first.p == pytest.approx(2 * alone.pvalue, rel=1e-3)
    assert (first.result, first.level) == ("above", 0.975)
    assert second.level == (0.95 if id == "2" else pytest.approx(0.95))


def test_claim_1_needs_one_deeper_net_and_its_rejection_all(tmp_path):
    lower = [e - 3 for e in LOW]
    wide = [1.0, 9.0, 5.0, 6.0]
    found = judged(tmp_path / "a", {("none", 20): LOW, ("none", 32): lower, ("none", 56): HIGH})[
        "1"
    ]
    assert found.verdict == "confirmed"
    found = judged(tmp_path / "b", {("none", 20): LOW, ("none", 32): lower, ("none", 56): wide})[
        "1"
    ]
    assert found.verdict == "undecided"
    found = judged(tmp_path / "c", {("none", 20): LOW, ("none", 32): lower, ("none", 56): lower})[
        "1"
    ]
    assert found.verdict == "rejected"


def test_an_interval_never_contradicts_its_result(tmp_path):
    nets = {("none", d): [e * d / 20 for e in LOW] for d in (20, 26, 32, 44)}
    nets |= {("A", d): [e + 0.1 * i * d for i, e in enumerate(LOW)] for d in (20, 26, 32, 44)}
    for claim in judged(tmp_path, nets).values():
        for one in claim.comparisons:
            low, high = one.ci95
            assert (one.result == "above") == (low > one.threshold)
            assert (one.result == "below") == (high <= one.threshold)
            assert (one.result in ("above", "below")) == (one.p <= 0.05)


def test_claim_2_takes_a_then_b_then_c(tmp_path):
    flat, rise = [5.0, 5.1], [30.0, 30.1]
    nets = {("B", 20): flat, ("B", 56): rise, ("C", 20): flat, ("C", 56): flat}
    assert judged(tmp_path / "b", nets)["2"].verdict == "rejected"
    nets |= {("A", 20): flat, ("A", 56): flat}
    assert judged(tmp_path / "a", nets)["2"].verdict == "confirmed"
    # A single depth of A cannot be compared.
    one_of_a = {("A", 20): flat, ("B", 20): flat, ("B", 56): rise}
    assert judged(tmp_path / "one", one_of_a)["2"].verdict == "rejected"


@pytest.mark.parametrize(
    ("plain", "verdict"),
    [
        ([30.0, 30.6], "confirmed"),
        ([3.0, 3.6], "rejected"),
        ([19.0, 22.0], "undecided"),
    ],
)
def test_claim_4(tmp_path, plain, verdict):
    residual = [20.0, 20.5]
    nets = {("none", 8): [99.0, 99.0], ("none", 20): plain, ("A", 20): residual}
    nets |= {("none", 32): [0.0, 0.0], ("A", 32): [50.0, 50.0], ("B", 20): [0.0, 0.0]}
    claim = judged(tmp_path, nets)["4"]
    assert claim.verdict == verdict
    assert claim.difference == pytest.approx(sum(plain) / 2 - 20.25)
    assert "plain-20" in claim.detail
    assert "resnet-20-A" in claim.detail


def test_claim_4_looks_at_the_first_quarter(tmp_path):
    for shortcut, errors in (("none", (80.0, 1.0)), ("A", (20.0, 50.0))):
        metrics = fixture.lines([25, 100], [[e, e + 1] for e in errors])
        fixture.write(tmp_path / shortcut, metrics, model__shortcut=shortcut, replicates=2)
    assert verdicts(tmp_path)["4"].difference == pytest.approx(60.0)


def test_one_replicate_decides_nothing(tmp_path):
    nets = {("none", 20): [5.0], ("none", 56): [50.0, 51.0], ("A", 20): [4.0], ("A", 56): [4.0]}
    found = judged(tmp_path, nets)
    assert [found[id].verdict for id in ERROR_CLAIMS] == ["undecided"] * 3
    assert [found[id].ci95 for id in ERROR_CLAIMS] == [None] * 3
    assert found["1"].difference == pytest.approx(45.5)
    assert "two replicates on each side" in found["1"].detail


def test_a_claim_whose_networks_are_missing_is_not_tested(tmp_path):
    found = judged(tmp_path, {("none", 20): [5.0, 6.0], ("A", 8): [1.0, 2.0], ("B", 20): [2.0]})
    del found["3"]
    assert {claim.verdict for claim in found.values()} == {"undecided", "not tested"}
    assert found["1"].detail == "needs two depths of plain nets, but there is only plain-20"
    assert found["2"].detail == (
        "needs two depths of residual nets of one shortcut, but there is only resnet-8-A, "
        "resnet-20-B"
    )
    assert found["4"].verdict == "undecided"  # both nets exist, B has one seed
    found = judged(tmp_path / "plain", {("none", 20): [5.0, 6.0], ("none", 56): [5.0, 6.0]})
    assert found["2"].detail.endswith("but there is none")
    assert found["4"].detail == "needs a plain and a residual net of one depth"
    assert [found[id].verdict for id in ("2", "4")] == ["not tested"] * 2
    assert [found[id].difference for id in ("2", "4")] == [None] * 2


def test_networks_that_have_not_ended_decide_nothing(tmp_path):
    write_cell(tmp_path, "none", 20, [5.0, 6.0], batch_size=MANY)
    for shortcut, depth in (("none", 56), ("A", 20), ("A", 56)):
        write_cell(tmp_path, shortcut, depth, [5.0, 6.0], batch_size=MANY, status="running")
    found = verdicts(tmp_path)
    assert [found[id].verdict for id in ERROR_CLAIMS] == ["undecided"] * 3
    assert [found[id].difference for id in ERROR_CLAIMS] == [None] * 3
    assert found["1"].detail == (
        "needs two depths of plain nets, but only plain-20 has ended; "
        "not counted: plain-56 (running)"
    )
    assert found["2"].detail.startswith(
        "needs two depths of residual nets, but no residual net has ended; not counted: "
    )
    assert found["4"].detail == "needs a plain and a residual net of one depth, both ended"


# One wrong digit of 1,257 in both seeds, and none at all: no spread over seeds.


def test_no_spread_is_not_certainty(tmp_path):
    one_digit = 100 / 1257
    nets = {("none", 20): [0.0, 0.0], ("none", 56): [one_digit, one_digit]}
    claim = judged(tmp_path / "a", nets, batch_size=126)["1"]
    assert claim.verdict == "undecided"
    assert claim.ci95[0] < 0 < claim.ci95[1]
    nets = {("none", 20): [5.0, 5.0], ("none", 56): [7.0, 7.0]}
    claim = judged(tmp_path / "b", nets, batch_size=126)["1"]
    assert claim.ci95[0] < 2.0 < claim.ci95[1]


def test_both_at_zero_is_saturated(tmp_path):
    nets = {(s, d): [0.0] * 4 for s in ("none", "A") for d in (20, 56)}
    found = judged(tmp_path, nets, batch_size=126)
    assert [found[id].verdict for id in ERROR_CLAIMS] == ["saturated"] * 3
    for claim in (found[id] for id in ERROR_CLAIMS):
        assert "both are at 0 %" in claim.detail
        assert claim.ci95[0] == -claim.ci95[1]
        assert claim.ci95[1] == pytest.approx(100 * 3.69 / (4 * examples(claim)), rel=0.01)


def examples(claim):
    return 126 * (25 if claim.id == "4" else 10)  # a quarter of 100 steps, and an epoch of 10


def test_a_depth_that_is_saturated_keeps_claim_2_from_being_confirmed(tmp_path):
    nets = {("A", 20): [0.0] * 4, ("A", 56): [0.0] * 4, ("A", 110): [0.01, 0.02, 0.01, 0.02]}
    claim = judged(tmp_path, nets)["2"]
    assert [c.result for c in claim.comparisons] == ["saturated", "below"]
    assert (claim.verdict, claim.detail.split()[0]) == ("saturated", "resnet-56-A")


# Divergence is evidence for claim 1 and against claim 2, never the reverse.


def test_two_of_four_diverged_do_not_confirm_claim_2(tmp_path):
    nets = {("A", 20): LOW, ("A", 56): [5.0, DIVERGED, 5.1, DIVERGED]}
    claim = judged(tmp_path, nets)["2"]
    assert claim.verdict == "undecided"
    assert "diverged, each seed counted as 100 %: resnet-56-A (2 of 4 seeds)" in claim.detail
    assert claim.difference == pytest.approx((5.0 + 5.1 + 200) / 4 - 5.05)


def test_a_net_of_which_all_seeds_diverged_rejects_claim_2(tmp_path):
    nets = {("A", 20): LOW, ("A", 56): LOW, ("A", 110): [DIVERGED] * 4}
    claim = judged(tmp_path, nets)["2"]
    assert claim.verdict == "rejected"
    assert claim.detail.startswith("resnet-110-A (4 diverged) against resnet-20-A 5.05")
    assert "resnet-110-A (4 of 4 seeds)" in claim.detail


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "undecided"), (4, "confirmed")])
def test_a_net_of_which_all_seeds_diverged_confirms_claim_1(tmp_path, seeds, verdict):
    claim = judged(tmp_path, {("none", 20): LOW[:seeds], ("none", 56): [DIVERGED] * seeds})["1"]
    assert claim.verdict == verdict
    assert f"plain-56 ({seeds} of {seeds} seeds)" in claim.detail
    assert ("seeds per side would decide it" in claim.detail) == (verdict == "undecided")


def test_a_diverged_shallow_net_confirms_neither_claim(tmp_path):
    nets = {(s, 20): [DIVERGED] * 5 for s in ("none", "A")}
    nets |= {(s, 56): [*LOW, 5.0] for s in ("none", "A")}
    found = judged(tmp_path, nets)
    assert found["1"].verdict == "rejected"  # deeper nets were better
    assert found["2"].verdict == "undecided"
    assert "resnet-20-A cannot be the baseline of this claim" in found["2"].detail


def test_claim_4_counts_a_divergence_within_the_first_quarter(tmp_path):
    def early(at):
        folder = tmp_path / str(at)
        write_cell(folder, "none", 20, [*HIGH, 30.0], batch_size=MANY)
        write_cell(folder, "A", 20, [*LOW[:3], DIVERGED, DIVERGED], batch_size=MANY, at=at)
        return verdicts(folder)["4"]

    assert early(20).verdict == "undecided"
    assert "resnet-20-A (2 of 5 seeds)" in early(10).detail
    # A seed that diverges later counts with its own early error, here 80 %.
    later = early(40)
    assert later.difference == pytest.approx(sum([*HIGH, 30.0]) / 5 - (15.3 + 160) / 5)
    assert later.detail.endswith("; diverged after the early steps: resnet-20-A (2 of 5 seeds)")
    assert "100 %" not in later.detail


def test_all_residual_seeds_that_diverge_at_once_reject_claim_4(tmp_path):
    write_cell(tmp_path, "none", 20, [*LOW, 5.0], batch_size=MANY)
    write_cell(tmp_path, "A", 20, [DIVERGED] * 5, batch_size=MANY, at=10)
    assert verdicts(tmp_path)["4"].verdict == "rejected"


def test_a_divergence_in_an_unfinished_net_keeps_claim_2_open(tmp_path):
    for depth in (20, 56):
        write_cell(tmp_path, "A", depth, LOW, batch_size=MANY)
    assert verdicts(tmp_path)["2"].verdict == "confirmed"
    write_cell(tmp_path, "A", 110, [DIVERGED, 5.0], batch_size=MANY, status="preempted")
    claim = verdicts(tmp_path)["2"]
    assert claim.verdict == "undecided"
    assert "resnet-110-A is preempted, and 1 of its 2 seeds diverged" in claim.detail
    assert claim.detail.endswith("; not counted: resnet-110-A (preempted)")


def test_an_undecided_claim_says_how_many_seeds_would_decide_it(tmp_path):
    nets = {("none", 20): [9.0, 10.0, 11.0], ("none", 56): [10.0, 13.0, 10.5]}
    claim = judged(tmp_path / "a", nets)["1"]
    (one,) = claim.comparisons
    assert claim.verdict == "undecided"
    assert f"about {one.seeds_needed} seeds per side would decide it" in claim.detail
    assert one.seeds_needed == 20
    nets = {("none", 20): [9.0, 10.0, 11.0], ("none", 56): [11.0, 10.0, 9.0]}
    claim = judged(tmp_path / "b", nets)["1"]
    assert "no number of seeds would decide it at this difference" in claim.detail


@pytest.mark.parametrize(
    ("scales", "names", "tested"),
    [
        ({"model__shortcut_scale": 0.0}, ["plain-8", "plain-32"], {"1"}),
        (
            {"model__shortcut_scale": 0.0, "model__shortcut_scale_by": "1/L"},
            ["plain-8", "plain-32"], {"1"},
        ),
        ({"model__shortcut_scale": 0.1}, ["resnet-8-A", "resnet-32-A"], {"2"}),
        (
            {"model__shortcut_scale": 0.0, "model__shortcut_scale_by": "learned"},
            ["resnet-8-A", "resnet-32-A"], {"2"},
        ),
    ],
)  # fmt: skip
def test_a_net_with_shortcuts_times_0_is_plain(tmp_path, scales, names, tested):
    fixture.study(tmp_path / "s", depths=(8, 32), shortcuts=("A",), **scales)
    (group,) = groups.comparable(reader.find([tmp_path / "s"]))
    assert [cell.name for cell in group.cells] == names
    found = {one.id for one in claims.judge(group, 0.5) if one.verdict != registry.NOT_TESTED}
    assert found & {*ERROR_CLAIMS} == tested
