"""Probes of the features of trained networks, as a user runs the program."""

import json
import shutil

import numpy as np
import pytest

from experiments.probing import measured
from resnet_jax import trained
from resnet_jax.analysis import examples, probes
from resnet_jax.analysis.probes import Features
from tests import tiny
from tests.interop import foreign


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A plain and a residual network with random weights."""
    folder = tmp_path_factory.mktemp("probed") / "study"
    foreign.write_run(folder / "plain-8", shortcut="none")
    foreign.write_run(folder / "resnet-8-A")
    return folder


def probe(*arguments):
    return tiny.program("experiments.probe", *arguments)


def features(run, split):
    loaded = trained.load(str(run))
    compute = examples.features_of(loaded, ["stage2"], mean=True)
    with examples.of_split(loaded, split) as given:
        parts = list(examples.outputs(loaded, given, compute))
    return Features(
        np.concatenate([values["stage2"] for _, values in parts]),
        np.concatenate([labels for labels, _ in parts]),
    )


def test_every_network_is_probed_at_every_endpoint(study, tmp_path):
    done = probe(study, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "probes.json").read_text())["rows"]
    endpoints = ["stem", "stage1", "stage2", "stage3"]
    assert [(row["network"], row["endpoint"]) for row in rows] == [
        (network, endpoint) for network in ("plain-8", "resnet-8-A") for endpoint in endpoints
    ]
    (found,) = [r for r in rows if (r["network"], r["endpoint"]) == ("resnet-8-A", "stage2")]
    splits = [features(study / "resnet-8-A", split) for split in examples.SPLITS]
    for kind, function in (
        ("linear probe", probes.linear),
        ("nearest neighbours", probes.neighbours),
    ):
        expected = function(*splits)
        assert found["probes"][kind] == {
            "error": pytest.approx(expected.error), "chosen": expected.chosen
        }  # fmt: skip
        assert 0 < expected.error < 90
        (table,) = [part for part in done.stdout.split("\n\n") if f"of the {kind}" in part]
        (line,) = [line for line in table.splitlines() if line.startswith("resnet-8-A")]
        assert line.split()[3] == f"{expected.error:.2f}"
    for name in ("probes.png", "probes.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 5000
    assert "plain-8, mean" in (tmp_path / "out" / "probes.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name run folders or studies"),
        (("/nowhere",), "/nowhere is not a folder"),
        (("STUDY", "--endpoints=stage4"), "--endpoints='stage4' is not known; allowed are stem, "),
        (("STUDY", "--seeds=0"), "--seeds"),
        (("STUDY", "--endpoints=stem,stem"), "logits, each once."),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, study):
    done = probe(*(study if argument == "STUDY" else argument for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_run_that_diverged_before_its_first_checkpoint_is_left_out(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    broken = tmp_path / "study" / "plain-8"
    shutil.rmtree(broken / "tested")
    status = json.loads((broken / "status.json").read_text())
    (broken / "status.json").write_text(json.dumps(status | {"status": "diverged", "reason": ""}))
    done = probe(tmp_path / "study", "--endpoints=stage3")
    assert done.returncode == 0, done.stderr
    assert "plain-8: left out; it is diverged at step 0 of 12 and has no checkpoint." in done.stderr
    assert "resnet-8-A" in done.stdout
    assert "plain-8" not in done.stdout


def test_without_a_validation_split_a_random_fifth_chooses():
    """Examples may be in the order of their labels."""
    labels = np.arange(1000) % 5
    kept, held_out = measured._split(Features(labels[:, None].astype(float), labels))
    assert len(held_out.labels) == 200
    for part in (kept, held_out):
        np.testing.assert_array_equal(part.values[:, 0], part.labels)
        assert np.bincount(part.labels).min() > len(part.labels) / 7


def test_runs_on_different_data_are_refused(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    file = tmp_path / "study" / "plain-8" / "config.json"
    config = json.loads(file.read_text())
    config["data"]["classes"] = [1, 2]
    file.write_text(json.dumps(config))
    done = probe(tmp_path / "study")
    assert done.returncode == 2
    assert "the runs are on different data, digits, digits [1, 2]; probe" in done.stderr
    for folder in (tmp_path / "study").iterdir():
        config["data"] |= {"name": "arrays", "classes": []}
        (folder / "config.json").write_text(json.dumps(config))
        facts = json.loads((folder / "environment.json").read_text())
        facts["data"] = {"content": f"of {folder.name}"}
        (folder / "environment.json").write_text(json.dumps(facts))
    done = probe(tmp_path / "study")
    assert "different data, arrays of plain-8, arrays of resnet-8-A; probe" in done.stderr
