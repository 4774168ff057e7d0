"""Claim 3d, which compares the variants of a study, and its rank correlation."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.report import contents, headlines, outputs
from experiments.report.claims import registry
from experiments.report.statistics import rank_correlation
from resnet_jax.runs import reader
from tests.report import fixture


def study(folder, nets, **changes):
    """Writes a variant per (powers of ten between first and last gradient, training error).

    The gradients of every second variant vanish towards the input, those of the others explode.
    """
    for i, (powers, error) in enumerate(nets):
        errors = [error, error + 0.2]
        rows = [{"step": 0}, *fixture.flat(errors, errors, errors)]
        for row in rows[:: len(rows) - 1]:  # after training the gradients say nothing
            apart = powers if row["step"] == 0 else 5.0 - powers
            first = [10.0 ** (apart * (-1) ** i)] * 2
            row["signals/gradient_norm/stem_conv"] = first
            row["signals/gradient_norm/stage1_block1/conv1"] = [1.0, 1.0]
        name = "base" if i == 0 else f"cure{i}"
        fixture.write(
            folder / name, rows, variant=name, replicates=2, model__depth=56,
            optimizer__clip_norm=float(i), **{"model__shortcut": "none"} | changes,
        )  # fmt: skip
    (folder / "claims.json").write_text(
        '{"3d": {"before_runs": true, "at": "2026-01-02T03:04:05+00:00"}}'
    )
    return contents.of_runs(reader.find([folder]), margin=0.5)


def of_3d(report):
    return [one for one in report.judgements if one.id == "3d"]


HEALTHY = [(0.1 * i, 2.0 + i) for i in range(4)]
UNHEALTHY = [(2.5 + 0.1 * i, 60.0 + i) for i in range(5)]


def test_nets_with_healthy_gradients_train_better(tmp_path):
    report = study(tmp_path / "s", [*UNHEALTHY, *HEALTHY])
    judged = [one for one in of_3d(report) if one.verdict != registry.NOT_TESTED]
    (one,) = judged
    assert (one.verdict, one.difference) == ("confirmed", pytest.approx(1.0))
    assert one.group == f"{tmp_path / 's'}: all variants"
    assert one.naming.before_runs
    assert one.detail == (
        "gradient norms of 4 plain nets (errors of 2.10 to 5.10 %) differ by less than a factor of "
        "100; 5 plain nets (errors of 60.10 to 64.10 %) by more"
    )
    (headline,) = [h for h in headlines.of(report) if h.judgements]
    assert headline.judgements == (one,)
    assert headline.lead.startswith("Training error, compared with base")
    assert "3d" not in headlines.not_tested(report.judgements)
    # A claim that no group tests still has one sentence for all groups.
    assert not any("(in " in sentence for sentence in headlines.not_tested(report.judgements)["1"])
    text = "\n".join(str(part) for part in outputs.as_text(report))
    assert one.detail in text
    assert one.detail in outputs.as_markdown(report)


def test_the_claim_is_rejected_or_open_as_the_order_says(tmp_path):
    reverse = [(powers, 70.0 - error) for powers, error in (*HEALTHY, *UNHEALTHY)]
    (one,) = [j for j in of_3d(study(tmp_path / "r", reverse)) if j.group.endswith("variants")]
    assert (one.verdict, one.difference) == ("rejected", pytest.approx(-1.0))
    mixed = list(zip([0.1 * i for i in range(8)], [3, 1, 8, 5, 7, 2, 6, 4], strict=True))
    (one,) = [j for j in of_3d(study(tmp_path / "m", mixed)) if j.group.endswith("variants")]
    assert one.verdict == "undecided"
    assert one.detail.endswith("100; no plain net by more")


@pytest.mark.parametrize(
    ("count", "changes", "lack"),
    [
        (7, {}, "needs 8 variants of plain nets, and there are 7"),
        (9, {"model__shortcut": "A"}, "needs 8 variants of plain nets, and there are 0"),
    ],
)
def test_without_enough_plain_nets_it_is_not_tested(tmp_path, count, changes, lack):
    report = study(tmp_path / "s", [(0.1 * i, 5.0 + i) for i in range(count)], **changes)
    assert {one.verdict for one in of_3d(report)} == {registry.NOT_TESTED}
    assert lack in [one.detail for one in of_3d(report)]
    (sentence,) = headlines.not_tested(report.judgements)["3d"]  # none about its single recipes
    assert lack in sentence


def test_a_study_without_variants_says_so(tmp_path):
    fixture.study(tmp_path / "s", depths=(8, 14))
    report = contents.of_runs(reader.find([tmp_path / "s"]), margin=0.5)
    (sentence,) = headlines.not_tested(report.judgements)["3d"]
    assert sentence.endswith("train better): it needs a study of variants.")


def test_tau_is_scipys_and_its_interval_holds_as_often_as_it_says():
    x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]
    tau, (low, high) = rank_correlation(x, y)
    assert tau == scipy.stats.kendalltau(x, y).statistic == pytest.approx(20 / 28)
    half = 1.959964 * math.sqrt(0.437 / 4)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(tau) - half), math.tanh(math.atanh(tau) + half))
    )
    assert rank_correlation([1] * 8, y) == (0.0, (-1.0, 1.0))
    tau, (low, high) = rank_correlation(x, x)
    assert tau == pytest.approx(1.0)
    assert 0.8 < low < high < 1.0
    draws = np.random.default_rng(0)
    intervals = [
        rank_correlation(draws.normal(size=17), draws.normal(size=17))[1] for _ in range(1000)
    ]
    assert 0.93 < sum(low <= 0 <= high for low, high in intervals) / 1000 < 0.97
