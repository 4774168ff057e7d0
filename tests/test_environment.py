"""What surrounds a program does not leak in: locale, home, proxies, platform, owner of files."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from resnet_jax import environment
from tests import report_fixture, tiny


def depends_on_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the locale has."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if "encoding" in keywords or (name, owner) in (("open", "os"), ("open", "Image")):
        return False
    if name == "open":
        modes = [keywords.get("mode"), *call.args]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and len(str(m.value)) < 4]
        return not any("b" in str(text) for text in texts)
    return name in ("read_text", "write_text") or (owner == "subprocess" and "text" in keywords)


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    found, seen = [], 0
    for folder in ("resnet_jax", "experiments", "configs", "benchmarks"):
        for path in (tiny.ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    seen += getattr(node.func, "attr", "") in ("read_text", "write_text")
                    if depends_on_the_locale(node):
                        found.append(f"{path.relative_to(tiny.ROOT)}:{node.lineno}")
    assert seen > 10
    assert found == []


@pytest.mark.parametrize("call", ["open(p)", "p.open('w')", "p.read_text()", "open(p, mode='a')",
                                  "subprocess.run(c, text=True)"])  # fmt: skip
def test_the_test_of_encodings_sees(call):
    assert depends_on_the_locale(ast.parse(call).body[0].value)


def test_a_report_is_written_and_printed_in_any_locale(tmp_path):
    study = report_fixture.study(tmp_path / "study", depths=(8, 14), replicates=2)
    ascii_only = tiny.environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", str(study), f"--out={tmp_path / 'report'}"],
        cwd=tiny.ROOT, env=ascii_only, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xb1" in done.stdout  # the sign ± on an ASCII terminal
    assert "±" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
