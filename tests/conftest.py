"""Settings for all tests: eight devices, no silent broadcasting, warnings are errors."""

import importlib.metadata
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from experiments.cli import huge_pages

# Set before jax is imported, which reads them once; values of the user are kept. Most of a test's
# time is compiling, which takes half as long without LLVM's optimisations, and half as long again
# in one piece and without fusion emitters, which only jaxlib 0.10 can switch off. Programs that
# tests start are compiled as for a user: see tiny.environment().
_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,
    "--xla_cpu_parallel_codegen_split_count": 1,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that tests start need not restart themselves.
os.environ.update(huge_pages.environment(os.environ))

import jax  # noqa: E402 - see above

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parents[1]


def pytest_configure(config):
    # nohup ignores SIGHUP, and a shell's & SIGINT; programs that tests start would inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # No pinned library warns today; an exception added here needs its reason.
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """One compilation cache, outside of ~, for all tests and the programs that they start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by all workers
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    # JAX has already read its variables in this process. Many tests build the same tiny programs.
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled" / "here"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@pytest.fixture(scope="session")
def tfds_dir():
    """A TFDS root that holds CIFAR-10."""
    roots = [os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "datasets"]
    for root in filter(None, roots):
        if (pathlib.Path(root) / "cifar10").is_dir():
            return str(root)
    pytest.skip("no prepared CIFAR-10: set TFDS_DATA_DIR to a TFDS root that has it")


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """An empty TFDS root, also the default one, so that a test cannot use this machine's data."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return str(tmp_path)


@pytest.fixture
def scratch(tmp_path):
    """A folder for large files, removed at the test's end; pytest would keep them, 6 GB in all."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """Returns a function that mounts a file system with room for few bytes or few files."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], check=True)
