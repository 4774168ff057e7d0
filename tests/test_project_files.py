"""The files about the project agree with one another."""

import hashlib
import re
import tomllib

import yaml

from tests import tiny

PROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
AUTHORS = "The resnet_jax authors"


def text(name):
    return (tiny.ROOT / name).read_text(encoding="utf-8")


def test_the_license_is_apache_s_to_the_letter_with_our_name():
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["authors"] == [{"name": AUTHORS}]
    blank, count = re.subn(rf"2026 {AUTHORS}", "[yyyy] [name of copyright owner]", text("LICENSE"))
    assert count == 1
    # Of https://www.apache.org/licenses/LICENSE-2.0.txt
    digest = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(blank.encode()).hexdigest() == digest


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "references"}
    for entry in (citation, citation["preferred-citation"]):
        assert entry["type"] == "software"
        assert entry["version"] == PROJECT["version"]
        assert entry["license"] == PROJECT["license"]
        assert entry["title"].startswith(PROJECT["name"])
        assert entry["authors"] == [{"name": AUTHORS}]


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[:2] == ["Unreleased", PROJECT["version"]]


def test_the_classifiers_name_the_versions_of_python_that_are_allowed():
    lowest, above = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    named = [c for c in PROJECT["classifiers"] if c.startswith("Programming Language")]
    assert named == [f"Programming Language :: Python :: 3.{n}" for n in range(lowest, above)]


def test_what_contributors_are_told_is_there():
    told = text("CONTRIBUTING.md")
    targets = re.findall(r"^    make (\S+)", told, re.MULTILINE)
    assert targets == ["check", "test"]
    assert all(re.search(rf"^{target}:", text("Makefile"), re.MULTILINE) for target in targets)
    files = re.findall(r"`([\w./]+\.(?:py|txt|toml))`", told)
    assert len(files) >= 5
    assert [file for file in files if not (tiny.ROOT / file).is_file()] == []
