"""Programs do not depend on their surroundings: locale, home, proxies, platform, file owners."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from experiments.cli import compilation_cache
from resnet_jax.errors import RunError
from resnet_jax.parallel import processes
from resnet_jax.runs import environment
from tests import tiny
from tests.report import fixture


def depends_on_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the locale's encoding."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    opens_bytes = owner in ("os", "Image", "tarfile", "archive")  # the last is a zip file
    if "encoding" in keywords or (name == "open" and opens_bytes):
        return False
    if name == "open":
        modes = [keywords.get("mode"), *call.args]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and len(str(m.value)) < 4]
        return not any("b" in str(text) for text in texts)
    return name in ("read_text", "write_text") or (owner == "subprocess" and "text" in keywords)


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    offenders, seen = [], 0
    for folder in ("resnet_jax", "experiments", "configs", "benchmarks"):
        for path in (tiny.ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    seen += getattr(node.func, "attr", "") in ("read_text", "write_text")
                    if depends_on_the_locale(node):
                        offenders.append(f"{path.relative_to(tiny.ROOT)}:{node.lineno}")
    assert seen > 5
    assert offenders == []


@pytest.mark.parametrize("call", ["open(p)", "p.open('w')", "p.read_text()", "open(p, mode='a')",
                                  "subprocess.run(c, text=True)"])  # fmt: skip
def test_calls_that_depend_on_the_locale_are_recognised(call):
    assert depends_on_the_locale(ast.parse(call).body[0].value)


def test_a_report_is_written_and_printed_in_any_locale(tmp_path):
    study = fixture.study(tmp_path / "study", depths=(8, 14), replicates=2)
    ascii_only = tiny.environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", str(study), f"--out={tmp_path / 'report'}"],
        cwd=tiny.ROOT, env=ascii_only, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xb1" in done.stdout  # the sign ± on an ASCII terminal
    assert "±" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of a package that has an environment.py."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "nobody@example.org")
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "environment.py").write_text("")
    for command in (["init"], ["add", "."], ["commit", "--message=first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    return folder


def test_the_commit_of_another_users_checkout_is_recorded(checkout, monkeypatch):
    mine = environment._git(checkout)
    assert mine["clean"] is True
    assert len(mine["commit"]) == 40
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "status"], cwd=checkout, capture_output=True)
    assert b"dubious ownership" in refused.stderr
    assert environment._git(checkout) == mine


def test_the_reason_for_no_commit_is_recorded_and_logged(checkout, monkeypatch, caplog):
    caplog.set_level("INFO")
    installed = checkout / "site-packages" / "resnet_jax"  # in the checkout of another project
    installed.mkdir(parents=True)
    (installed / "environment.py").write_text("")
    facts = environment._git(installed)
    assert facts["commit"] is None
    assert "did not match any file" in facts["reason"]
    assert f"The commit is not recorded: {facts['reason']}" in caplog.text
    monkeypatch.setenv("PATH", "")
    assert environment._git(checkout) == {
        "commit": None, "clean": None, "reason": "git: No such file or directory",
    }  # fmt: skip


def test_without_a_home_programs_are_not_cached_and_one_line_says_so(monkeypatch, caplog):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    caplog.set_level("INFO")
    monkeypatch.setattr(pathlib.Path, "home", nowhere)
    assert compilation_cache.cache_folder("auto", {}) is None
    (line,) = caplog.messages
    assert line.startswith("Compiled programs are not kept: this user has no home directory; ")


def test_a_library_that_logs_at_its_import_does_not_double_the_log(tmp_path):
    program = (
        "import logging; logging.warning('at import'); from absl import logging as ours; "
        "from experiments.cli import command_line; "
        "command_line.run(lambda argv: ours.info('once'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True)
    assert b"once" not in done.stderr  # only our own programs log, and this one is -c


@pytest.mark.parametrize("platform", ["cuda", "nosuch", "cpu,nosuch"])
def test_a_missing_platform_is_one_sentence(platform):
    if "cuda" in platform and shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    program = (
        "from experiments.cli import command_line; from resnet_jax.parallel import mesh; "
        "command_line.run(lambda argv: mesh.make_mesh())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True,
        env=tiny.environment() | {"JAX_PLATFORMS": platform},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS={platform}, but JAX finds no such device here (")
    assert line.endswith("; without JAX_PLATFORMS it finds cpu.") or shutil.which("nvidia-smi")


def test_a_machine_without_devices_is_one_sentence(monkeypatch):
    def none():
        raise RuntimeError("no device\nand more")

    monkeypatch.setattr(jax, "devices", none)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        with pytest.raises(RunError, match=r"^JAX finds no usable device: no device\.$"):
            processes.devices()
    finally:
        jax.config.update("jax_platforms", before)


def test_proxies_are_hidden_from_the_coordinator_only(monkeypatch):
    given = {"http_proxy": "http://x:1", "HTTPS_PROXY": "http://y:1", "no_proxy": "z"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with processes._without_proxies():
        assert [name for name in given if name in os.environ] == ["no_proxy"]
    assert {name: os.environ[name] for name in given} == given
