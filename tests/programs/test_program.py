"""How programs end after an unexpected error."""

import subprocess
import sys

import pytest

from experiments.cli import command_line
from resnet_jax import train as trainer
from resnet_jax.data import records
from resnet_jax.errors import sentence
from resnet_jax.runs import reader
from tests import tiny

BUG = """
import sys
from absl import flags
from experiments.cli import command_line
flags.DEFINE_string("workdir", None, "The run folder.")
sys.argv = ["it", *sys.argv[1:]]
command_line.run(lambda argv: 1 / 0)
"""
SENTENCE = "error: this is a bug in resnet_jax: ZeroDivisionError: division by zero; "


def with_a_bug(tmp_path, *flags):
    return subprocess.run(
        [sys.executable, "-c", BUG, *flags],
        cwd=tiny.ROOT, env=tiny.environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_bug_is_one_sentence_and_its_traceback_a_file_in_the_run_folder(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    done = with_a_bug(tmp_path, f"--workdir={workdir}")
    assert done.returncode == command_line.BUG == 70
    (file,) = workdir.iterdir()
    assert done.stderr == (
        f"{SENTENCE}please report it with {file}, which has the traceback "
        "(README, Reporting a bug)\n"
    )
    content = file.read_text(encoding="utf-8")
    assert f"--workdir={workdir}" in content
    assert "Python 3." in content
    assert "Traceback (most recent call last)" in content
    assert content.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "\n## Reporting a bug\n" in (tiny.ROOT / "README.md").read_text(encoding="utf-8")


def test_without_a_run_folder_on_a_disk_the_traceback_is_in_a_temporary_file(tmp_path):
    done = with_a_bug(tmp_path, "--workdir=gs://bucket/run")
    assert done.returncode == 70
    (file,) = tmp_path.glob("bug-*.txt")
    assert f"report it with {file}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_if_no_file_can_be_written_the_traceback_is_on_the_screen(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    said = command_line._report(ZeroDivisionError("division by zero"))
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert "the traceback above" in said


def test_a_bug_is_recorded_in_the_runs_status(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("lost")

    monkeypatch.setattr(trainer, "_loop", broken)
    with pytest.raises(KeyError):
        trainer.train(tiny.config(), str(tmp_path))
    status = reader.read(tmp_path).status
    assert status["status"] == "failed"
    assert status["reason"] == "this is a bug in resnet_jax: KeyError: 'lost'"


def test_a_missing_package_is_not_reported_as_a_bug(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['sklearn.datasets'] = None\n"  # it provides digits
    )
    done = subprocess.run(
        [*tiny.command(tmp_path / "run"), "--compilation_cache=none"],
        cwd=tiny.ROOT, env=tiny.environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: a package is missing or broken (import of sklearn.datasets halted; None in "
        "sys.modules); install the packages in requirements.txt."
    )
    assert "Traceback" not in done.stderr


def test_a_module_of_ours_that_cannot_be_imported_is_a_bug():
    ours = ImportError("cannot import name 'x'", name="resnet_jax.train")
    assert sentence(ours).startswith("this is a bug in resnet_jax: ImportError")
    assert sentence(ImportError("gone", name="optax")) == (
        "a package is missing or broken (gone); install the packages in requirements.txt"
    )


def test_a_report_without_the_plots_extra_is_one_sentence(tmp_path):
    # None in sys.modules is how Python says that a module cannot be imported.
    program = (
        "import sys; sys.modules['matplotlib'] = None; "
        f"sys.argv = ['compare', {str(tmp_path)!r}, '--out=x']; "
        "from experiments import compare; "
        "from experiments.cli import command_line; command_line.run(compare.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "resnet_jax[plots]" in done.stderr


def test_a_package_missing_in_tfds_is_not_reported_as_bad_data(tmp_path, monkeypatch):
    (tmp_path / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    (tmp_path / "features.json").write_text('{"pythonClassName": "x"}')

    def lacking(*_, **__):
        raise ModuleNotFoundError("No module named 'six'", name="six")

    monkeypatch.setattr("tensorflow_datasets.builder_from_directory", lacking)
    with pytest.raises(ModuleNotFoundError):
        records.read_info(tmp_path)


@pytest.mark.parametrize(
    "flags", [["--depth"], ["--config=configs/digits.py", "--json"]], ids=" ".join
)
def test_a_copy_of_a_process_answers_as_a_process_of_its_own(flags):
    program = ("experiments.describe", *flags)
    own = subprocess.run(
        [sys.executable, "-m", *program],
        cwd=tiny.ROOT, env=tiny.environment() | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip
    copied = tiny.program(*program)  # as most tests start a program, see forks.py
    assert (own.returncode, own.stdout, own.stderr) == (
        copied.returncode, copied.stdout, copied.stderr,
    )  # fmt: skip
    assert own.stdout + own.stderr
