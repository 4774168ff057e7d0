"""Tasks for SkyPilot, as its own parser reads them, and how we read its answers."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
import yaml

from experiments.launchers import skypilot
from experiments.study import cell_folders
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage
from tests import tiny
from tests.runs import buckets

OWN = tiny.ROOT / ".venv-skypilot" / "bin" / "python"
with_skypilot = [
    pytest.mark.slow,
    pytest.mark.skipif(not OWN.exists(), reason="no .venv-skypilot: make test-slow makes it"),
]
BUCKET = "gs://lab/runs/Depth_ImageNet"
TPU = {"accelerators": "tpu-v6e-16", "infra": "gcp/us-east5", "mounts": ("/data=gs://lab/tfds",)}
GPUS = {"accelerators": "H100:8", "nodes": 2, "spot": False, "resources": ("disk_size=500",)}


def launcher(workdir=BUCKET, **options):
    return skypilot.SkyPilot(storage.locate(workdir), skypilot.SkyPilotOptions(**options))


def jobs(*names, workdir=BUCKET):
    return [cell_folders.job(storage.locate(workdir) / name, with_cluster=True) for name in names]


def ask_skypilot(question, about, tmp_path):
    """Runs skypilot_own.py, hidden from the real home folder."""
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [OWN, tiny.ROOT / "tests" / "launchers/skypilot_own.py", question], input=json.dumps(about),
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # it prints messages before


@pytest.fixture
def sky(tmp_path, monkeypatch):
    """A fake `sky`; returns (asked, answer): a list of its calls, and a setter of its answer."""
    asked, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    program = folder / "sky"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answer(text="", code=0, complaint=""):
        program.write_text(
            f"#!{sys.executable}\nimport sys, pathlib, json\n"
            f"with open({str(asked)!r}, 'a') as f:\n"
            "    task = sys.argv[-1]\n"
            "    read = pathlib.Path(task).read_text() if task.endswith('.yaml') else ''\n"
            "    f.write(json.dumps([sys.argv[1:], read]) + '\\n')\n"
            f"print({text!r})\nprint({complaint!r}, file=sys.stderr)\nsys.exit({code})\n"
        )
        program.chmod(0o755)

    def calls():
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [json.loads(line) for line in lines]

    answer()
    return calls, answer


# -------------------------------------------------------------------------------- SkyPilot's own


class TestBySkyPilotsOwnCode:
    pytestmark = with_skypilot

    def test_a_task_for_a_tpu_slice_is_what_was_asked(self, tmp_path):
        (task,) = ask_skypilot(
            "parse_tasks", [launcher(**TPU).script(jobs("plain-34", "resnet-34-A"))], tmp_path
        )
        assert task["name"].startswith("depth-imagenet-")
        assert task["name"].endswith("-plain-34")
        assert task["accelerators"] == {"tpu-v6e-16": 1}
        assert task["infra"] == "gcp/us-east5"
        assert task["spot"] is True
        assert task["nodes"] == 1
        assert task["recovery"]["recover_on_exit_codes"] == [42]
        assert task["recovery"]["max_restarts_on_errors"] == 3
        assert task["strategy"] == "EagerFailoverStrategyExecutor"
        assert task["mounts"] == {"/data": ["gs://lab/tfds", "MOUNT"]}
        assert task["workdir"] == str(tiny.ROOT)
        assert f"'jax[tpu]=={jax.__version__}'" in task["setup"]
        assert "--python {}.{} ".format(*sys.version_info) in task["setup"]
        assert task["run"].split() == [
            ".venv/bin/python", "-m", "experiments.train",
            f"--config=configs/saved.py:{BUCKET}/plain-34/config.json",
            f"--workdir={BUCKET}/plain-34",
        ]  # fmt: skip

    def test_a_task_for_gpu_nodes_is_what_was_asked(self, tmp_path):
        (task,) = ask_skypilot("parse_tasks", [launcher(**GPUS).script(jobs("plain-34"))], tmp_path)
        assert task["accelerators"] == {"H100": 8}
        assert task["nodes"] == 2
        assert task["spot"] is False
        assert task["disk_size"] == 500
        assert task["mounts"] == {}
        assert "jax[cuda13]==" in task["setup"]

    def test_a_cell_of_any_name_gets_machines_and_is_found_again(self, tmp_path, sky):
        cell = "plain-20-rate=0.1-wd=1e+00"
        queue = launcher()
        (task,) = ask_skypilot("parse_tasks", [queue.script(jobs(cell))], tmp_path)
        assert re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", task["machine"])
        _, answer = sky
        answer(json.dumps([{"job_id": 1, "job_name": task["name"], "status": "RUNNING"}]))
        assert queue.active() == [cell]

    def test_a_wrong_resource_is_refused_by_it(self, tmp_path):
        text = launcher(resources=("disk_sise=500",)).script(jobs("plain-34"))
        (task,) = ask_skypilot("parse_tasks", [text], tmp_path)
        assert "did you mean 'disk_size'" in task["refused"]

    def test_its_program_reads_our_commands(self, tmp_path):
        launch, queue, cancel = ask_skypilot(
            "parse_commands",
            [
                skypilot.launch_command("a-plain-34", pathlib.Path("task.yaml")),
                skypilot.QUEUE_COMMAND,
                skypilot.cancel_command(["3", "5"]),
            ],
            tmp_path,
        )
        assert launch == [
            "launch",
            {"yes": True, "detach_run": True, "name": "a-plain-34", "entrypoint": ["task.yaml"]},
        ]
        assert queue == ["queue", {"all": True, "output_format": "json"}]
        assert cancel == ["cancel", {"yes": True, "job_ids": ["3", "5"]}]

    def test_its_states_and_its_queue_are_the_ones_we_read(self, tmp_path, sky):
        assert ask_skypilot("list_active", None, tmp_path) == list(skypilot.ACTIVE_JOBS)
        queue = launcher()
        name = yaml.safe_load(queue.script(jobs("plain-34")))["name"]
        job = {"job_id": 3, "job_name": name, "status": "RECOVERING", "infra": "gcp (us-east5)"}
        _, answer = sky
        answer(json.dumps(ask_skypilot("print_queue", [job], tmp_path)))
        assert queue.states() == {"plain-34": "3 RECOVERING in gcp (us-east5)"}


# ------------------------------------------------------------------------------------ the rest


def test_the_command_of_gpu_nodes_is_that_of_processes_by_hand(tmp_path):
    """Runs the task's shell code with the variables that SkyPilot sets on each node."""
    run = launcher(**GPUS).task(jobs("plain-34")[0])["run"]
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "python").chmod(0o755)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2",
             "SKYPILOT_NODE_RANK": "1"}  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", run], cwd=tmp_path, env=os.environ | nodes, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "-m", "experiments.train", f"--config=configs/saved.py:{BUCKET}/plain-34/config.json",
        f"--workdir={BUCKET}/plain-34", "--coordinator=10.0.0.4:8476", "--processes=2",
        "--process=1",
    ]  # fmt: skip


def test_each_cell_is_a_job_and_those_of_another_bucket_are_not_ours(sky):
    asked, answer = sky
    queue = launcher()
    said = queue.submit(jobs("plain-34", "plain-18"))
    (first, task), (second, _) = asked()
    assert first[:4] == ["jobs", "launch", "--yes", "--detach-run"]
    names = [words[4].removeprefix("--name=") for words in (first, second)]
    assert yaml.safe_load(task)["name"] == names[0]
    assert names[0].removesuffix("plain-34") == names[1].removesuffix("plain-18")
    assert names[0].removesuffix("plain-34") in said

    other = yaml.safe_load(launcher("gs://other/runs/Depth_ImageNet").script(jobs("plain-34")))
    assert other["name"] != names[0]
    answer(
        json.dumps(
            [
                {"job_id": 4, "job_name": names[0], "status": "RUNNING", "infra": "aws"},
                {"job_id": 1, "job_name": names[0], "status": "FAILED", "failure_reason": "x"},
                {"job_id": 9, "job_name": other["name"], "status": "RUNNING"},
                {"job_id": 5, "job_name": names[1], "status": "FAILED", "failure_reason": "quota"},
                {"job_id": 6, "job_name": None, "status": "PENDING"},
            ]
        )
    )
    assert queue.states() == {"plain-34": "4 RUNNING in aws", "plain-18": "5 FAILED (quota)"}
    assert queue.active() == ["plain-34"]
    queue.cancel(["plain-34"])
    assert asked()[-1][0] == ["jobs", "cancel", "--yes", "4"]


def test_skypilots_errors_are_passed_on(sky):
    _, answer = sky
    answer(code=1, complaint="checking ...\nNo cloud is enabled. Run: sky check")
    with pytest.raises(RunError, match=r"^sky jobs launch failed: No cloud is enabled\. Run: sky"):
        launcher().submit(jobs("plain-34"))


def test_a_machine_without_skypilot_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sky cannot be found: --launcher=skypilot needs"):
        launcher().submit(jobs("plain-34"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accelerators": "H100 8"}, "--accelerators=H100 8 is not of the form NAME or NAME:COUNT"),
        ({"mounts": ("/data",)}, "--mount=/data is not of the form PATH=URL"),
        (
            {"mounts": ("data=gs://b/x",)},
            "--mount=data=gs://b/x is not allowed; give an absolute path",
        ),
        (
            {"mounts": ("/data=/x",)},
            "--mount=/data=/x is not allowed; give an absolute path and a bucket",
        ),
        ({"resources": ("disk_size",)}, "--resource=disk_size is not of the form KEY=VALUE"),
        ({"workdir": "/here"}, "--workdir=/here is a folder of this machine"),
    ],
)
def test_a_mistake_is_one_sentence(options, words):
    with pytest.raises(UserError, match=f"^{words}"):
        launcher(**options)


def test_data_must_be_where_the_machines_find_them():
    queue = launcher(mounts=("/data=gs://lab/tfds",))
    queue.require_data("imagenet2012", "/data")
    queue.require_data("imagenet2012", "/data/prepared")
    queue.require_data("digits", "")
    for elsewhere in ("", "/database", "/home/me/data"):
        with pytest.raises(UserError, match=r"does not exist on .* --mount=/data=gs://"):
            queue.require_data("imagenet2012", elsewhere)


@pytest.mark.slow
def test_a_study_is_submitted_followed_and_cancelled(sky):
    asked, answer = sky
    flags = [flag.replace("--config.", "--config.base.") for flag in tiny.flags_of()]
    with buckets.served("s3") as url:

        def sweep(*more):
            return tiny.program(
                "experiments.sweep", f"--workdir={url}/study",
                "--config=configs/degradation_digits.py:one_rate", "--launcher=skypilot",
                *(flag for flag in flags if "model.depth" not in flag), *more,
            )  # fmt: skip

        planned = sweep("--dry_run", "--only=*-20*", "--rate=100", "--devices=4")
        assert planned.returncode == 0, planned.stderr
        assert "at most 4 at a time on skypilot." in planned.stdout
        assert "device-hours" in planned.stdout
        task = planned.stdout.split("Nothing was started or written.")[1]
        assert yaml.safe_load(task)["run"].startswith(".venv/bin/python -m experiments.train")
        assert "The same for each of the other jobs: resnet-20-A" in task
        assert "There is no estimate" in sweep("--dry_run", "--only=plain-20").stdout
        refused = sweep("--only=plain-20", "--config.base.data.name=cifar10")
        assert refused.returncode == 2
        assert "does not exist on SkyPilot's machines" in refused.stderr
        assert asked() == []

        answer("[]")
        done = sweep("--only=*-20*")
        assert done.returncode == 0, done.stderr
        assert "Cells submitted: 2." in done.stderr
        launched = [words for words, _ in asked() if words[1] == "launch"]
        names = [words[4].removeprefix("--name=") for words in launched]
        assert [name.split("-", 2)[2] for name in names] == ["plain-20", "resnet-20-A"]
        storage.locate(f"{url}/study/plain-20/config.json").read_text()  # for the job to find

        running = [{"job_id": 7, "job_name": names[0], "status": "RUNNING", "infra": "gcp"}]
        answer(json.dumps(running))
        assert "7 RUNNING in gcp" in sweep("--only=*-20*", "--status").stdout
        assert "Already submitted to skypilot: plain-20." in sweep("--only=plain-20").stderr
        assert "Cancelled: plain-20." in sweep("--cancel").stderr
        assert asked()[-1][0] == ["jobs", "cancel", "--yes", "7"]


@pytest.mark.skipif(not OWN.exists(), reason="no .venv-skypilot: make test-slow makes it")
@pytest.mark.slow
def test_the_task_in_the_guide_is_accepted(tmp_path):
    text = (tiny.ROOT / "docs" / "tpu.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (task,) = ask_skypilot("parse_tasks", [block], tmp_path)
    assert "refused" not in task, task
    assert task["accelerators"] == {"tpu-v5litepod-16": 1}
    assert task["spot"] is True
    assert task["recovery"]["recover_on_exit_codes"] == [42]
    assert task["strategy"] == "EagerFailoverStrategyExecutor"
