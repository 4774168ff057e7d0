"""Scripts for Slurm and its answers, with fake commands; test_slurm_cluster.py has a real one."""

import json
import pathlib
import stat
import subprocess

import pytest

from experiments.cli import tables
from experiments.launchers import slurm, slurm_scripts
from experiments.launchers.interface import Job
from experiments.study import cell_folders, ledger
from resnet_jax.errors import RunError, UserError
from tests import tiny

CELLS = ("plain-8", "odd name's-8")


def jobs(workdir, cells=CELLS):
    return [cell_folders.job(workdir / cell, with_cluster=True) for cell in cells]


def launcher(workdir, **options):
    return slurm.Slurm(workdir, slurm_scripts.SlurmOptions(**options))


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts fakes of Slurm's programs first in PATH; each logs its arguments and prints a file."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def answer(name, text, code=0):
        (folder / f"{name}.txt").write_text(text)
        program = folder / name
        program.write_text(
            f'#!/bin/bash\necho "$(basename $0) $*" >> {folder}/called.txt\n'
            f"cat {folder}/{name}.txt {'>&2' if code else ''}\nexit {code}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    answer.called = lambda: (folder / "called.txt").read_text().splitlines()
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        answer(name, "")
    return answer


def test_every_option_is_in_the_script(tmp_path):
    script = launcher(
        tmp_path / "a study", partition="gpu", account="me", time="1:00:00", gres="gpu:8", nodes=2,
        tasks_per_node=8, cpus_per_task=4, at_once=3, sbatch=("--qos=low", "--exclude=node7"),
    ).script(jobs(tmp_path / "a study"))  # fmt: skip
    assert script.startswith("#!/bin/bash\n")
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "#SBATCH --job-name='a study'",
        "#SBATCH --array=0-1%3",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=me",
        "#SBATCH --time=1:00:00",
        "#SBATCH --gres=gpu:8",
        "#SBATCH --signal=SIGTERM@120",
        f"#SBATCH --output='{tmp_path}/a study/slurm/%A_%a.txt'",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --qos=low",
        "#SBATCH --exclude=node7",
    ]
    # Options that are not given do not appear.
    plain = launcher(tmp_path).script(jobs(tmp_path))
    for word in ("partition", "account", "time=", "gres", "cpus-per-task", "%3"):
        assert word not in plain
    assert "#SBATCH --array=0-1\n" in plain


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("code", [0, 1, 42])
def test_the_script_runs_the_cell_of_its_number(tmp_path, index, code, commands):
    workdir = tmp_path / "a study"
    commands("srun", "", code)
    commands("scontrol", "")
    path = tmp_path / "script.sh"
    path.write_text(launcher(workdir).script(jobs(workdir)))
    done = subprocess.run(
        ["bash", str(path)], capture_output=True, text=True,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(index),
             "SLURM_JOB_ID": "77"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    called = commands.called()
    folder = workdir / CELLS[index]
    assert called[0].startswith(f"srun --kill-on-bad-exit=1 --output={folder}/log.txt ")
    assert called[0].endswith(
        f"-m experiments.train --config={tiny.ROOT}/configs/saved.py:{folder}/config.json "
        f"--workdir={folder}"
    )
    # Only a preempted cell is requeued.
    assert called[1:] == (["scontrol requeue 77"] if code == 42 else [])


def test_submitting_is_recorded(tmp_path, commands):
    commands("sbatch", "123;cluster\n")
    queue = launcher(tmp_path)
    assert queue.states() == {}
    assert queue.active() == []
    assert commands.called()[0].startswith("squeue ")  # also to see whether there is a Slurm
    said = queue.submit(jobs(tmp_path))
    assert said.startswith("Slurm's job is 123; its script is ")
    (line,) = (tmp_path / "slurm" / "jobs.jsonl").read_text().splitlines()
    assert json.loads(line)["job"] == "123"
    assert json.loads(line)["cells"] == list(CELLS)
    (script,) = (tmp_path / "slurm").glob("*.sh")
    assert commands.called()[-1] == f"sbatch --parsable {script}"
    assert script.read_text() == queue.script(jobs(tmp_path))


def test_states_join_the_queue_and_the_accounts(tmp_path, commands):
    queue = launcher(tmp_path)
    cells = [f"c{i}" for i in range(6)]
    for number, submitted in (("5", ["c0"]), ("7", cells)):
        commands("sbatch", f"{number}\n")
        queue.submit(jobs(tmp_path, submitted))
    commands(
        "squeue",
        "5_0|CANCELLED|None|node1\n7_0|RUNNING|None|node1\n7_1|PENDING|Priority|\n"
        "7_2|PENDING|None|\n9_0|RUNNING|None|node9\n",
    )
    commands("sacct", "7_3|COMPLETED|node2\n7_4|CANCELLED by 0|None assigned\n7_[8-9]|PENDING|\n")
    assert queue.states() == {
        "c0": "7_0 RUNNING on node1",  # the newest of its two jobs
        "c1": "7_1 PENDING (Priority)",
        "c2": "7_2 PENDING",
        "c3": "7_3 COMPLETED on node2",
        "c4": "7_4 CANCELLED",
        "c5": "7_5 UNKNOWN",
    }
    assert queue.active() == ["c0", "c1", "c2"]
    assert next(c for c in commands.called() if c.startswith("sacct")).count("--jobs=7 ") == 1
    # Without accounting, the state of a forgotten job is unknown.
    commands("sacct", "Slurm accounting storage is disabled\n", 1)
    assert queue.states()["c3"] == "7_3 UNKNOWN"
    queue.cancel(["c0", "c2"])
    assert commands.called()[-1] == "scancel 7_0 7_2"


def test_a_command_follows_jobs_that_have_not_ended(tmp_path, commands, monkeypatch):
    queue = launcher(
        tmp_path, partition="gpu", account="me", time="1:00:00", gres="gpu:8", nodes=2,
        cpus_per_task=4, at_once=3, sbatch=("--qos=low",),
    )  # fmt: skip
    command = ("python", "-m", "program", "--flag=(1, 2)")
    for number, submitted in (("5", ["a", "b"]), ("6", ["c"]), ("7", ["d"])):
        commands("sbatch", f"{number}\n")
        queue.submit(jobs(tmp_path, submitted))
    ended = "5_0|COMPLETED|None|node1\n7_0|RUNNING|None|node1\n"
    commands("squeue", f"{ended}5_1|PENDING|None|\n6_0|REQUEUED|None|\n")
    commands("sbatch", "8\n")
    assert queue.submit_after(["a"], command) == ""
    monkeypatch.chdir(tmp_path)
    assert queue.submit_after(["a", "b", "c"], command) == "8"
    name, path = list(queue.states())[-1], sorted((tmp_path / "slurm").glob("*.sh"))[-1]
    assert name.startswith("sweep-2")
    assert (
        path.read_text()
        == f"""\
#!/bin/bash
#SBATCH --job-name=sweep-{tmp_path.name}
#SBATCH --array=0
#SBATCH --dependency=afterany:5:6
#SBATCH --partition=gpu
#SBATCH --account=me
#SBATCH --time=1:00:00
#SBATCH --output={tmp_path}/slurm/%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --qos=low

cd {tmp_path} || exit 1
exec python -m program '--flag=(1, 2)'
"""
    )

    # The pending one is enough for its own jobs; another job has another one, which waits for it.
    commands("sbatch", "9\n")
    commands("squeue", f"{ended}5_1|RUNNING|None|\n6_0|RUNNING|None|\n8_0|PENDING|Dependency|\n")
    assert queue.submit_after(["b"], command) == "8"
    assert queue.submit_after(["b", "d"], command) == "9"
    last = sorted((tmp_path / "slurm").glob("*.sh"))[-1].read_text()
    assert "#SBATCH --dependency=afterany:5:7:8\n" in last
    # One that runs may have looked at the pilots already.
    commands("squeue", f"{ended}5_1|RUNNING|None|\n8_0|RUNNING|None|\n")
    commands("sbatch", "10\n")
    assert queue.submit_after(["b"], command) == "10"

    commands("squeue", f"{ended}5_1|RUNNING|None|\n8_0|PENDING|Dependency|\n")
    queue.cancel(queue.active())
    assert commands.called()[-1] == "scancel 8_0 5_1 7_0"


def test_slurms_errors_are_passed_on(tmp_path, commands):
    commands("sbatch", "sbatch: error: one thing\nsbatch: error: no such account\n", 1)
    with pytest.raises(RunError, match=r"^sbatch failed: no such account$"):
        launcher(tmp_path).submit(jobs(tmp_path))
    commands("squeue", "squeue: error: no controller\n", 1)
    with pytest.raises(RunError, match=r"^squeue failed: no controller$"):
        launcher(tmp_path).active()
    assert not (tmp_path / "slurm" / "jobs.jsonl").exists()


def test_a_machine_without_slurm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch cannot be found: --launcher=slurm needs"):
        launcher(tmp_path).submit(jobs(tmp_path))


def test_cells_that_differ_in_more_than_their_folder_are_no_array(tmp_path):
    one, other = jobs(tmp_path)
    other = Job(other.name, (*other.command, "--more"), other.log)
    with pytest.raises(ValueError, match="too many values"):
        launcher(tmp_path).script([one, other])


def test_submitted_jobs_do_not_inherit_the_submitting_jobs_variables():
    kept = {"SLURM_CONF": "c", "PATH": "p", "JAX_COMPILATION_CACHE_DIR": "d"}
    given = {"SLURM_JOB_ID": "1", "SBATCH_X": "2", **kept}
    assert slurm._environment(given) == kept


def test_the_table_has_a_column_for_jobs():
    printed = tables.plain(ledger.status_table([], ["a", "b"], {"a": "7_0 RUNNING on node1"}))
    heading, a, b, *_ = printed.splitlines()
    assert heading.split()[:3] == ["cell", "status", "job"]
    assert "7_0 RUNNING on node1" in a
    assert b.split() == ["b", "not", "started", "-"]
    assert "job" not in tables.plain(ledger.status_table([], ["a"]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--partition=gpu"], "--partition is for --launcher=slurm; this is --launcher=local."),
        (
            ["--cancel"],
            "--cancel needs --launcher=slurm or --launcher=skypilot; stop a local sweep with "
            "Ctrl-C.",
        ),
        (
            ["--launcher=slrum"],
            "--launcher='slrum' is not known; allowed are local, slurm or skypilot ",
        ),
        (["--nodes=0", "--launcher=slurm"], "nodes=0"),
        (["--infra=gcp", "--launcher=slurm"], "--infra is for --launcher=skypilot; this is --la"),
        (["--nodes=2"], "--nodes is for --launcher=slurm or --launcher=skypilot; this is --laun"),
        (["--nospot"], "--spot is for --launcher=skypilot; this is --launcher=local."),
        (["--rate=100"], "--rate has an effect only with --dry_run."),
        (["--rate=0", "--dry_run"], "--rate=0 is not allowed; it is images per second, above 0."),
        (["--devices=8", "--dry_run"], "--devices has an effect only with --rate."),
        (["--launcher=skypilot"], "is a folder of this machine; for --launcher=skypilot give"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, flags, words):
    done = tiny.program(
        "experiments.sweep", "--config=configs/degradation_digits.py:one_rate",
        f"--workdir={tmp_path / 'study'}", *flags,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path):
    done = tiny.program(
        "experiments.sweep", "--config=configs/degradation_digits.py:one_rate",
        f"--workdir={tmp_path / 'study'}", "--launcher=slurm", "--dry_run", "--only=plain-*",
        "--config.base.model.width=0.25", "--config.base.replicates=1", "--nodes=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Nothing was started or written." in done.stdout
    assert "#SBATCH --nodes=2" in done.stdout
    assert "CELLS=(plain-56 plain-20)" in done.stdout
    assert not pathlib.Path(tmp_path / "study").exists()
