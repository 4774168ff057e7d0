"""Records of a run folder that a person or another program has changed are refused by name."""

import json
import math

import pytest

from experiments.report import contents
from resnet_jax.errors import UserError
from resnet_jax.runs import identity, reader, records
from tests.report import fixture

STATUS = {"status": "running", "step": 3, "steps": 9, "reason": ""}


def write(folder, file, content):
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "status.json is not JSON"),
        ("[]", "status.json is not a JSON object."),
        ({"step": 3, "steps": 9}, "status.json is malformed: it lacks reason and status."),
        (STATUS | {"status": 3}, "status.json is malformed: status=3 is not a string."),
        (STATUS | {"step": True}, "status.json is malformed: step=True is not a whole number."),
        (STATUS | {"step": 1.5}, "step=1.5 is not a whole number."),
        (STATUS | {"device_seconds": "9"}, "device_seconds='9' is not a number."),
        (STATUS | {"device_seconds": math.nan}, "status.json is not JSON (it has NaN)."),
        (STATUS | {"diverged": [3]}, "diverged=[3] is not an object."),
        (STATUS | {"diverged": {"1": None}}, "diverged.1=None is not a whole number."),
    ],
)
def test_a_malformed_status_is_refused(tmp_path, content, words):
    write(tmp_path, "status.json", content)
    with pytest.raises(UserError) as raised:
        records.read_status(tmp_path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"git": "main"}, "environment.json is malformed: git='main' is not an object."),
        ({"git": {"commit": 7}}, "git.commit=7 is not a string or null."),
        ({"git": {"clean": "yes"}}, "git.clean='yes' is not true or false or null."),
        ({"data": {"image_shape": [8, "8"]}}, "data.image_shape[1]='8' is not a whole number."),
        ({"devices": "cpu"}, "devices='cpu' is not a list."),
        ({"resumed": [{}, {"hosts": [1]}]}, "resumed[1].hosts[0]=1 is not a string."),
        ({"network": {"parameters": 1e3}}, "network.parameters=1000.0 is not a whole number."),
    ],
)
def test_a_malformed_environment_is_refused(tmp_path, content, words):
    write(tmp_path, "environment.json", content)
    with pytest.raises(UserError) as raised:
        records.read_environment(tmp_path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"over": ["schedule.rate"]}, "malformed: over=['schedule.rate'] is not an object."),
        ({"over": {"schedule.rate": 0.1}}, "malformed: over.schedule.rate=0.1 is not a list."),
        ({"extended": {"plain-8": [1]}}, "malformed: extended.plain-8=[1] is not an object."),
        ({"by": "loss"}, "malformed: by='loss' is not known; allowed are training_error, "),
    ],
)
def test_a_malformed_record_of_pilots_is_refused(tmp_path, content, words):
    fixture.write(tmp_path / "plain-8", fixture.flat(1.0))
    fixture.write(tmp_path / "pilots" / "plain-8", fixture.flat(1.0), seed=9)
    write(tmp_path / "pilots", reader.TUNING, content)
    with pytest.raises(UserError) as raised:
        contents.of_runs(reader.find([tmp_path]), margin=0.5, window=0)
    assert f"tuning.json is {words}" in str(raised.value)


def test_absent_unknown_and_whole_fields_are_kept(tmp_path):
    assert records.read_status(tmp_path) == records.read_environment(tmp_path) == {}
    status = STATUS | {"device_seconds": 12, "newer": [None]}
    write(tmp_path, "status.json", status)
    assert records.read_status(tmp_path) == status
    facts = {"git": {"commit": None, "clean": None, "reason": "no git"}, "init": {"x": [1]}}
    write(tmp_path, "environment.json", facts)
    assert records.read_environment(tmp_path) == facts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[2]", "line 2 is not a row of metrics: it needs a step, and a number or null for each"),
        ('{"train/loss": 1.0}', "line 2 is not a row"),
        ('{"step": "2"}', "line 2 is not a row"),
        ('{"step": true}', "line 2 is not a row"),
        ('{"step": 1.5}', "line 2 is not a row"),
        ('{"step": 2, "train/loss": "1.0"}', "line 2 is not a row"),
        ('{"step": 2, "train/loss": [1.0, true]}', "line 2 is not a row"),
        ('{"step": 2, "train/loss": [[1.0]]}', "line 2 is not a row"),
        ('{"step": 2, "train/loss": Infinity}', "line 2 is not JSON (it has Infinity)."),
        ('{"step": 1}', "line 2 has step 1 after step 1; the steps of rows must increase."),
        ('{"step": 0}', "line 2 has step 0 after step 1"),
    ],
)
def test_a_malformed_row_is_refused(tmp_path, line, words):
    write(tmp_path, "metrics.jsonl", f'{{"step": 1, "a": [1, null]}}\n{line}\n{{"step": 9}}\n')
    with pytest.raises(UserError) as raised:
        records.read_metrics(tmp_path)
    assert f"metrics.jsonl {words}" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"depth": "56"}}, "model.depth='56' is out of range"),
        ({"model": 56}, "model=56 is not an object."),
        ({"log": {"signals": [3]}}, "log.signals=[3] is not an object."),
        ({"init": {"from": None}}, "init.from=None is not a string."),
    ],
)
def test_a_run_with_a_wrong_setting_is_refused(tmp_path, content, words):
    write(tmp_path, "config.json", content)
    for read in (reader.read, lambda folder: identity.refuse_other(folder, {"seed": 0})):
        with pytest.raises(UserError) as raised:
            read(tmp_path)
        assert f"config.json has a wrong value: {words}" in str(raised.value)


def test_a_run_without_a_length_is_another_run(tmp_path):
    for steps in (None, {}):
        write(tmp_path, "config.json", {"seed": 0, "steps": steps})
        with pytest.raises(UserError, match=r"differs in steps \((None|absent) there, 3 here\)"):
            identity.refuse_other(tmp_path, {"seed": 0, "steps": 3})


def test_a_setting_of_another_version_is_kept(tmp_path):
    write(tmp_path, "config.json", {"profile": [3, 9], "model": {"colour": "red"}, "seed": 0})
    assert reader.read(tmp_path).config["model"]["colour"] == "red"
