"""Compiled programs are cached for later runs, and results do not depend on the cache."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import zlib

import jax
import pytest

from experiments.cli import compilation_cache
from resnet_jax.errors import UserError
from tests import tiny
from tests.runs.test_resume import wait_for_step

LONG = {"steps": 40, "replicates": 2, "ema_decay": 0.9, "checkpoint__every": 3, "log__every": 1}
PROGRAMS = ("jit_train_steps", "jit_eval_step", "jit_observe_step")


def start(workdir, cache, stderr=subprocess.PIPE, **variables):
    # JAX then logs which programs it finds in its cache.
    environment = tiny.environment() | {"JAX_LOG_COMPILES": "1"} | variables
    return subprocess.Popen(
        [*tiny.command(workdir, **LONG), f"--compilation_cache={cache}"],
        cwd=tiny.ROOT, env=environment, text=True, stderr=stderr,
    )  # fmt: skip


def train(workdir, cache, **variables):
    """Trains to the end; returns stderr."""
    process = start(workdir, cache, **variables)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


def found(said):
    """Returns the cache keys of the programs that were found in the cache."""
    return set(re.findall(r"cache hit for '\S+' with key '(\S+)'", said))


def entries(cache):
    files = {path.name.removesuffix("-cache"): path for path in cache.glob("*/*-cache")}
    assert all(any(name.startswith(program) for name in files) for program in PROGRAMS)
    return {name: path.read_bytes() for name, path in files.items()}


def assert_same_run(ours, theirs):
    assert tiny.lines(ours) == tiny.lines(theirs)
    tiny.assert_bit_equal(tiny.final_state(ours), tiny.final_state(theirs))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A run with --compilation_cache=none, although JAX's variable names a folder."""
    folder = tmp_path_factory.mktemp("without")
    said = train(folder / "run", "none", JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
    assert "ompiled programs" not in said
    assert not (folder / "cache").exists()
    return folder / "run"


@pytest.fixture(scope="module")
def kept(tmp_path_factory, without):
    """A cache folder that a run has filled."""
    folder = tmp_path_factory.mktemp("kept")
    said = train(folder / "run", folder / "cache")
    assert_same_run(folder / "run", without)
    assert "(0 so far)" in said
    assert not [name for name in found(said) if name.startswith(PROGRAMS)]
    return folder / "cache"


# ---------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_later_run_finds_every_program_and_is_the_same(tmp_path, without, kept):
    before = entries(kept)
    said = train(tmp_path / "run", kept)
    assert_same_run(tmp_path / "run", without)
    assert found(said) == before.keys()
    assert entries(kept) == before
    assert re.search(rf"Compiled programs are kept in {kept}/jax-\S+ \({len(before)} so far", said)


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_with_cached_programs(tmp_path, without, kept):
    folder = tmp_path / "run"
    process = start(folder, kept, stderr=subprocess.DEVNULL)  # an unread pipe would fill up
    wait_for_step(folder, process, 8)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    said = train(folder, kept)
    assert re.search(r"resumes at step \d", said)
    assert [name for name in found(said) if name.startswith("jit_train_steps")]
    assert_same_run(folder, without)


@pytest.mark.slow
def test_damaged_programs_are_reported_once_and_replaced(tmp_path, without, kept):
    before = entries(kept)
    damaged = [path for path in kept.glob("*/*-cache") if path.name.startswith(PROGRAMS)]
    empty, cut, other = damaged
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-100])
    other.write_bytes(other.read_bytes()[:-100] + bytes(100))
    said = train(tmp_path / "run", kept)
    assert_same_run(tmp_path / "run", without)
    assert said.count("could not be read from") == 1
    assert "Traceback" not in said
    assert "UserWarning" not in said
    assert entries(kept).keys() == before.keys()
    for path in damaged:
        zlib.decompress(path.read_bytes())  # intact again


# -------------------------------------------------------------------------------- which folder

HOME = pathlib.Path.home() / ".cache/resnet_jax/xla"


@pytest.mark.parametrize(
    ("flag", "environment", "folder"),
    [
        ("auto", {}, HOME),
        ("auto", {"XDG_CACHE_HOME": "/c"}, "/c/resnet_jax/xla"),
        ("auto", {"XDG_CACHE_HOME": "c"}, HOME),
        ("auto", {"XDG_CACHE_HOME": "/c", "JAX_COMPILATION_CACHE_DIR": "/d"}, "/d"),
        ("auto", {"JAX_COMPILATION_CACHE_DIR": ""}, HOME),
        ("/e", {"JAX_COMPILATION_CACHE_DIR": "/d"}, "/e"),
        ("~/e", {}, pathlib.Path.home() / "e"),
        ("e", {}, pathlib.Path.cwd() / "e"),
        ("none", {"JAX_COMPILATION_CACHE_DIR": "gs://b/c"}, None),
    ],
)
def test_which_folder(flag, environment, folder):
    expected = folder and pathlib.Path(folder)
    assert compilation_cache.cache_folder(flag, environment) == expected


@pytest.mark.parametrize("text", ["gs://bucket/cache", "s3://b/c", "gs:/b/c"])
def test_a_cache_in_a_bucket_is_refused(text):
    with pytest.raises(
        UserError, match=r"^--compilation_cache=\S* is a URL; it must be a path on a disk"
    ):
        compilation_cache.cache_folder(text, {})


def test_the_refusal_names_the_environment_variable():
    with pytest.raises(UserError, match=r"^JAX_COMPILATION_CACHE_DIR=gs://b/c is a URL"):
        compilation_cache.cache_folder("auto", {"JAX_COMPILATION_CACHE_DIR": "gs://b/c"})


def test_without_a_home_programs_are_not_cached(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", home)
    assert compilation_cache.cache_folder("auto", {}) is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert jax.config.jax_enable_compilation_cache
    try:
        compilation_cache.use(tmp_path / "file" / "cache")
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.fullmatch(
        r"Compiled programs are not kept: \S+/file/cache/jax-\S+ cannot be written \(.*\)\.",
        record.getMessage(),
    )


# ------------------------------------------------------------------------- content of the cache


@pytest.mark.slow
def test_jaxs_key_depends_on_the_processor():
    """The fingerprint is part of JAX's key, so a cached program never has unknown instructions."""
    program = (
        "import jax; from jax._src.lib import xla_client; "
        "print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())"
    )

    def fingerprint(**variables):
        return subprocess.run(
            [sys.executable, "-c", program], env=tiny.environment() | variables, check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    assert int(fingerprint())
    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")


def test_the_least_recently_used_programs_are_removed(tmp_path, monkeypatch):
    names = ["jax-1-a/old-cache", "jax-2-a/new-cache", "jax-2-a/read-cache", "other-cache"]
    for name, (accessed, modified) in zip(names, [(1, 1), (1, 3), (4, 1), (0, 0)], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (accessed, modified))

    def left():
        compilation_cache._prune(tmp_path)
        return [name for name in names if (tmp_path / name).exists()]

    assert left() == names
    monkeypatch.setattr(compilation_cache, "LIMIT_BYTES", 299)
    assert left() == names[1:]
    monkeypatch.setattr(compilation_cache, "LIMIT_BYTES", 100)
    assert left() == names[2:]
    monkeypatch.setattr(compilation_cache, "LIMIT_BYTES", 0)
    assert left() == ["other-cache"]  # not one of our programs
