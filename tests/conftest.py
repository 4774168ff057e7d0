"""Strict tests: eight devices, no silent broadcasting, warnings are errors."""

import os
import pathlib
import signal

import pytest

# Before anything imports jax, which reads both once. What the user has set stays.
_EIGHT = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402 - see above

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parents[1]


def pytest_configure(config):
    # Under nohup it is ignored, and programs that tests start would rightly ignore it, too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Without exceptions: no library that we pin warns. Should one, say here which and why.
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Where the programs that tests start keep what they compile: once for all tests, not in ~."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has its own in there
    # JAX has read its variables: what is compiled in this process is not kept.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")


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
    """An empty TFDS root, also by default: nothing on this machine can leak into a test."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return str(tmp_path)
