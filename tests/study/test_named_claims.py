"""The claims that a study names are checked, and recorded once when its sweep first starts."""

import json
import re

import pytest

from configs import degradation_digits, depth_imagenet, shortcuts_cifar10
from experiments.report.claims import naming
from experiments.study import grid, named_claims
from resnet_jax.errors import UserError
from tests.report import fixture

ALL = ("1", "2", "3", "3b", "4", "7a", "7b")


def test_the_studies_of_this_repository_name_their_claims():
    for module, ids in (
        (degradation_digits, ALL), (shortcuts_cifar10, ALL), (depth_imagenet, ("2", "7b")),
    ):  # fmt: skip
        assert named_claims.of_study(module.get_config()) == ids


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            ("1", "22"),
            "The id in claims='22' is not known; allowed are 1, 2, 3, 3b, 3c, 3d, 4, 7a, 7b, 8 or "
            "8b (nearest: 2).",
        ),
        ("1", "claims='1' is not a tuple of claims' ids, as in ('1', '2')."),
    ],
)
def test_unknown_claims_are_refused_in_one_sentence(value, words):
    study = degradation_digits.get_config("one_rate")
    with study.ignore_type():
        study.claims = value
    grid.check_parts(study)
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        named_claims.of_study(study)


def test_numbers_from_the_command_line_are_ids():
    study = degradation_digits.get_config("one_rate")
    study.claims = (1, 2)
    assert named_claims.of_study(study) == ("1", "2")


def test_claims_are_recorded_once_and_later_ones_as_such(tmp_path):
    study = tmp_path / "study"
    named_claims.record(study, ("2", "1"))
    first = (study / naming.FILE).read_text()
    assert {id: n.before_runs for id, n in naming.read(study).items()} == {"2": True, "1": True}
    fixture.write(study / "pilots" / "plain-20", [], status="queued")
    named_claims.record(study, ("1",))  # a shorter list takes nothing back
    assert (study / naming.FILE).read_text() == first
    named_claims.record(study, ("1", "4"))
    record = naming.read(study)
    assert {id: n.before_runs for id, n in record.items()} == {"2": True, "1": True, "4": False}
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00", n.at) for n in record.values())
    assert json.loads(first).items() <= json.loads((study / naming.FILE).read_text()).items()


def test_claims_named_for_a_study_that_has_runs_are_later_ones(tmp_path):
    fixture.write(tmp_path / "plain-20", [], status="queued")
    named_claims.record(tmp_path, ("1",))
    assert naming.read(tmp_path)["1"].before_runs is False
