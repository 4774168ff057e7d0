"""Every command of the README and the FAQ runs, in order, in a copy of the checkout."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests import tiny

PAGES = ("README.md", "docs/faq.md")
# The line before a block that cannot run everywhere gives the reason.
BLOCK = re.compile(r"(<!-- not run: (?P<why>.+) -->\n)?```sh\n(?P<commands>.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)(?:#[^)]*)?\)")


def blocks():
    """Returns (page, reason not to run it or None, commands) of each block."""
    return [
        (page, match["why"], match["commands"])
        for page in PAGES
        for match in BLOCK.finditer((tiny.ROOT / page).read_text(encoding="utf-8"))
    ]


def copy_checkout(folder):
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=tiny.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (tiny.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny.ROOT / name, folder / name)
    (folder / ".venv").symlink_to(pathlib.Path(sys.prefix))
    # `make venv` then finds nothing to install.
    os.utime(folder / "requirements.txt", (0, 0))


def test_the_pages_have_commands_to_run():
    run = [commands for _, why, commands in blocks() if why is None]
    assert len(run) > 6
    assert all(re.search(r"```sh", (tiny.ROOT / page).read_text()) for page in PAGES)


GUIDES = sorted(f"docs/{path.name}" for path in (tiny.ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", *GUIDES]
)
def test_links_lead_somewhere(page):
    text = (tiny.ROOT / page).read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (tiny.ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path):
    copy_checkout(tmp_path)
    environment = tiny.environment() | {"JAX_PLATFORMS": "cpu"}
    for page, why, commands in blocks():
        if why is None:
            done = subprocess.run(
                ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, text=True,
                capture_output=True,
            )  # fmt: skip
            assert done.returncode == 0, f"{page}: {commands}\n{done.stderr}"
    assert (tmp_path / "runs/mine/report/index.html").is_file()
