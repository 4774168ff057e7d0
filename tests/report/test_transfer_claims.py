"""Claims 8 and 8b, which compare test errors of networks that started from trained weights."""

import json

import pytest

from experiments.report import contents
from experiments.report.claims import registry
from resnet_jax.runs import reader
from tests.report import fixture

NETS = {"plain-20": "none", "resnet-20": "A"}
FACTORS = {"scratch": (), "fine_tuned": (), "frozen": (0, 0, 0, 0, 1)}
USUAL = {"scratch": (30.0, 20.0), "fine_tuned": (10.0, 12.0), "frozen": (25.0, 15.0)}


def study(folder, errors, **changes):
    """Writes plain and residual nets of each variant, given as {variant: (test errors)}."""
    for variant, pair in errors.items():
        for (name, shortcut), error in zip(NETS.items(), pair, strict=True):
            tests = [error, error + 1.0, error - 1.0]
            rows = fixture.flat([0.0] * 3, [40.0] * 3, tests)
            source = "" if variant == "scratch" else f"runs/{name}"
            fixture.write(
                folder / f"{name}-{variant}", rows, variant=variant, replicates=3,
                model__shortcut=shortcut, model__depth=20, init__from=source,
                optimizer__rate_factors=FACTORS[variant], **changes,
            )  # fmt: skip
    return contents.of_runs(reader.find([folder]), margin=0.5).judgements


def judged(judgements, id):
    return [j for j in judgements if j.id == id and j.verdict != registry.NOT_TESTED]


def test_trained_weights_that_help_every_network_confirm_claim_8(tmp_path):
    judgements = study(tmp_path, USUAL)
    (one,) = judged(judgements, "8")
    assert one.verdict == registry.CONFIRMED
    assert one.group.endswith("all variants")
    # The smaller of 20 and 8 points is shown; the seeds pair exactly, the examples do not.
    assert one.difference == pytest.approx(8.0)
    assert 0 < one.ci95[0] < 8 < one.ci95[1]
    assert (
        "resnet-20-A, scratch 20.00 ± 1.00 % (n = 3) against resnet-20-A, fine_tuned" in one.detail
    )
    assert {(c.network, c.baseline) for c in one.comparisons} == {
        ("plain-20, scratch", "plain-20, fine_tuned"),
        ("resnet-20-A, scratch", "resnet-20-A, fine_tuned"),
    }


@pytest.mark.parametrize(
    ("pair", "verdict"),
    [((10.0, 35.0), "rejected"), ((10.0, 19.9), "undecided"), ((10.0, 12.0), "confirmed")],
)
def test_the_verdict_of_claim_8_needs_every_network(pair, verdict, tmp_path):
    (one,) = judged(study(tmp_path, USUAL | {"fine_tuned": pair}), "8")
    assert one.verdict == verdict


def test_claim_8_needs_a_study_with_both(tmp_path):
    judgements = study(tmp_path / "one", {"scratch": (30.0, 20.0), "frozen": (9.0, 9.0)})
    assert judged(judgements, "8") == []
    (why,) = [j.detail for j in judgements if j.id == "8" and j.group.endswith("all variants")]
    assert why == "needs networks trained from scratch and from trained weights (init.from)"


def test_claim_8b_compares_frozen_features_of_one_depth(tmp_path):
    (one,) = judged(study(tmp_path / "one", USUAL), "8b")
    assert (one.verdict, one.difference) == (registry.CONFIRMED, pytest.approx(10.0))
    assert [(c.network, c.baseline) for c in one.comparisons] == [
        ("plain-20, frozen", "resnet-20-A, frozen")
    ]
    (other,) = judged(study(tmp_path / "two", USUAL | {"frozen": (15.0, 25.0)}), "8b")
    assert (other.verdict, other.difference) == (registry.REJECTED, pytest.approx(-10.0))


def test_a_diverged_seed_counts_as_100_percent(tmp_path):
    rows = fixture.flat([0.0, None], [40.0, None], [20.0, None])
    for name, shortcut, source in (("a", "none", ""), ("b", "none", "runs/x")):
        fixture.write(
            tmp_path / name, rows if name == "a" else fixture.flat([0.0] * 2, 9.0, [5.0, 5.0]),
            variant=name, replicates=2, model__shortcut=shortcut, init__from=source,
            more={"diverged": {"1": 50}} if name == "a" else {},
        )  # fmt: skip
    judgements = contents.of_runs(reader.find([tmp_path]), margin=0.5).judgements
    (one,) = judged(judgements, "8")
    assert one.comparisons[0].diverged == (1, 0)
    assert one.difference == pytest.approx((20.0 + 100.0) / 2 - 5.0)


def test_runs_of_versions_without_trained_weights_are_judged(tmp_path):
    study(tmp_path, {"scratch": (30.0, 20.0)})
    for file in tmp_path.glob("*/config.json"):
        config = json.loads(file.read_text())
        del config["init"], config["optimizer"]["rate_factors"]
        file.write_text(json.dumps(config))
    judgements = contents.of_runs(reader.find([tmp_path]), margin=0.5).judgements
    assert {j.id for j in judgements} >= {"1", "8", "8b"}
    assert judged(judgements, "8b") == []
