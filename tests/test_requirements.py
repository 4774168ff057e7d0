"""What is installed is the same everywhere: each line names a release of the package index."""

import re

import pytest

from tests import tiny

FILES = ["requirements.txt", "benchmarks/requirements.txt", "tests/requirements-skypilot.txt"]


@pytest.mark.parametrize("name", FILES)
def test_every_package_is_pinned_by_its_version(name):
    lines = (tiny.ROOT / name).read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    packages = [package for package in packages if package]
    assert len(packages) >= 3
    pinned = re.compile(r"[A-Za-z0-9][\w.\-]*(\[[\w,]+\])?==[\w.+]+( *;.*)?")
    assert [package for package in packages if not pinned.fullmatch(package)] == []
