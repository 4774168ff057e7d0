"""Claims that a study named before its runs, apart from later observations."""

import html
import json

import pytest

from experiments.report import claims, groups
from experiments.report.claims import naming
from resnet_jax.errors import UserError
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

BEFORE = {"before_runs": True, "at": "2026-01-02T03:04:05+00:00"}
AFTER = {"before_runs": False, "at": "2026-02-03T03:04:05+00:00"}


def namings(*folders):
    (group,) = groups.comparable(reader.find(folders))
    return {one.id: str(one.naming) for one in claims.judge(group, 0.5)}


def write_study(folder, depth, record):
    fixture.write(folder / f"plain-{depth}", fixture.flat(5.0), model__depth=depth)
    if record is not None:
        (folder / naming.FILE).write_text(json.dumps(record))
    return folder


def test_every_form_of_the_report_separates_them(tmp_path, capsys):
    study = fixture.study(tmp_path / "s", depths=(8, 14), replicates=2, steps=100)
    (study / naming.FILE).write_text(json.dumps({"1": BEFORE, "2": AFTER}))
    assert tiny.compare(study, f"--out={tmp_path / 'out'}") == 0
    page = html.unescape((tmp_path / "out" / "index.html").read_text())
    texts = [page, (tmp_path / "out" / "table.md").read_text(), capsys.readouterr().out]
    for text in texts:
        named, later = text.split("Claims named before the runs")[-1].split("Later observations")
        assert "(1) Deeper plain nets" in named
        assert "(2) " not in named
        assert [later.index(f"({id}) ") for id in ("2", "4")] != []
        assert "(1) Deeper" not in later
    assert all("claim 2 named 2026-02-03, after the runs" in text for text in texts[:2])
    assert page.count('<span class="naming">named before the runs</span>') == 1
    assert page.count('<span class="naming">a later observation</span>') == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {c["id"]: (c["named_before_runs"], c["named_at"]) for c in summary["claims"]} == {
        "1": (True, BEFORE["at"]), "2": (False, AFTER["at"]),
        **dict.fromkeys(("3", "3b", "3c", "3d", "4", "7a", "7b", "8", "8b"), (False, None)),
    }  # fmt: skip


def test_without_a_record_every_claim_is_an_observation(tmp_path):
    study = write_study(tmp_path / "s", 20, None)
    assert set(namings(study).values()) == {"not named in the study's config"}


def test_a_group_of_two_studies_counts_what_both_named(tmp_path):
    one = write_study(tmp_path / "one", 20, {"1": BEFORE, "2": BEFORE, "4": BEFORE})
    two = write_study(tmp_path / "two", 56, {"1": BEFORE | {"at": "2026-01-09"}, "2": AFTER})
    assert namings(one, two) == {
        "1": "named 2026-01-09, before the runs",
        "2": "named 2026-02-03, after the runs",
        **dict.fromkeys(
            ("3", "3b", "3c", "3d", "4", "7a", "7b", "8", "8b"), "not named in the study's config"
        ),
    }


def test_a_malformed_record_is_named(tmp_path):
    for content in ({"1": True}, {"1": {"at": "2026"}}):
        (tmp_path / naming.FILE).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"claims\.json is not a record of claims\.$"):
            naming.read(tmp_path)
