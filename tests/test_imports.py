"""Imports go one way: programs and configs import the library, and rooms only lower rooms."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("resnet_jax", "experiments", "configs", "benchmarks")
TOP = "resnet_jax"  # the files directly in resnet_jax/: the loop, the step, the settings

# The rooms (folders) that each room may import besides itself, and besides UNIVERSAL.
MAY_IMPORT = {
    "resnet_jax.weight_files": [],
    "resnet_jax.interop": ["resnet_jax.data", "resnet_jax.networks", "resnet_jax.runs",
                           "resnet_jax.weight_files", TOP],
    "resnet_jax.analysis": ["resnet_jax.data", "resnet_jax.networks", "resnet_jax.parallel", TOP],
    "resnet_jax.kernels": [],
    "resnet_jax.networks": ["resnet_jax.kernels"],
    "resnet_jax.parallel": ["resnet_jax.kernels"],
    "resnet_jax.data": ["resnet_jax.parallel", "resnet_jax.runs"],
    "resnet_jax.runs": ["resnet_jax.networks", "resnet_jax.parallel", TOP],
    TOP: [f"resnet_jax.{room}"
          for room in ("data", "interop", "kernels", "networks", "parallel", "runs")],
    "configs": [TOP, "resnet_jax.runs"],
    # A report reads run folders; it may use the names of networks, but nothing that trains.
    "experiments.report": ["configs", "experiments.cli", "experiments.report.axes",
                           "experiments.report.claims", "experiments.report.signals", TOP,
                           "resnet_jax.networks", "resnet_jax.runs"],
    "experiments.report.axes": ["experiments.report", "experiments.report.claims", TOP,
                                "resnet_jax.networks", "resnet_jax.runs"],
    "experiments.report.claims": ["experiments.report", "experiments.report.signals",
                                  "resnet_jax.networks", "resnet_jax.runs"],
    "experiments.report.signals": ["experiments.report"],
    "experiments.launchers": ["experiments.cli", "resnet_jax.data", "resnet_jax.parallel",
                              "resnet_jax.runs"],
    "experiments.preparation": ["resnet_jax.data", "resnet_jax.parallel", "resnet_jax.runs"],
    "experiments.probing": ["experiments.report", TOP, "resnet_jax.analysis",
                            "resnet_jax.networks", "resnet_jax.runs"],
    "experiments.prediction": ["experiments.cli", "resnet_jax.data", "resnet_jax.runs"],
    "experiments.pods": [TOP, "resnet_jax.data", "resnet_jax.networks", "resnet_jax.parallel"],
    "experiments.cli": ["configs", "experiments.study", TOP, "resnet_jax.runs"],
}  # fmt: skip
# The files of TOP that resnet_jax/runs may import.
KNOWN_TO_RUNS = {"errors", "pytree", "state", "settings"}
UNIVERSAL = {"resnet_jax.allowed", "resnet_jax.errors", "resnet_jax.pytree"}


def modules():
    """Returns {dotted name: path} of every source file."""
    paths = [p for source in SOURCES for p in (ROOT / source).rglob("*.py")]
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    return {n.removesuffix(".__init__"): p for n, p in zip(names, paths, strict=True)}


MODULES = modules()


def imported(path):
    """Returns the modules of this repository that a file imports, including inside functions."""
    imports = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imports |= {name if name in MODULES else node.module for name in names}
    return imports & MODULES.keys()


def room(module):
    """Returns the folder of a module, or the module itself for a package's `__init__`."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_imports_are_found():
    assert imported(MODULES["resnet_jax.train"]) >= {"resnet_jax.programs", "resnet_jax.effect"}
    assert room("resnet_jax.train") == TOP
    assert room("resnet_jax.runs.reader") == "resnet_jax.runs"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(folder):
    allowed = {folder, *MAY_IMPORT[folder]}
    members = [module for module in MODULES if room(module) == folder]
    assert members
    for module in members:
        others = imported(MODULES[module]) - UNIVERSAL
        assert {room(other) for other in others} <= allowed, module


def test_the_library_imports_no_programs_and_no_configs():
    library = [module for module in MODULES if module.startswith("resnet_jax")]
    for module in library:
        assert all(other.startswith("resnet_jax") for other in imported(MODULES[module])), module


def test_the_run_folder_imports_little_of_the_loop():
    for module in (m for m in MODULES if room(m) == "resnet_jax.runs"):
        loop = {other for other in imported(MODULES[module]) if room(other) == TOP}
        assert {other.rpartition(".")[2] for other in loop} <= KNOWN_TO_RUNS, module


def test_a_report_imports_nothing_that_trains():
    report = [module for module in MODULES if module.startswith("experiments.report")]
    imports = set().union(*(imported(MODULES[module]) for module in report))
    assert {m for m in imports if room(m) in (TOP, "resnet_jax.networks")} == {
        "resnet_jax.allowed",
        "resnet_jax.errors",
        "resnet_jax.networks.architectures",
        "resnet_jax.settings",
    }


def test_a_report_starts_without_jax():
    program = "import sys, experiments.compare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_no_two_modules_import_each_other():
    graph = {module: imported(path) for module, path in MODULES.items()}
    done = set()
    while left := {m: uses - done - {m} for m, uses in graph.items() if m not in done}:
        free = {module for module, uses in left.items() if not uses}
        assert free, f"these import each other: {sorted(left)}"
        done |= free


def test_only_execution_asks_for_the_platform():
    pattern = re.compile(r"\.platform [=!]= |platform [=!]= |default_backend")
    library = [module for module in MODULES if module.startswith("resnet_jax")]
    matches = {m for m in library if pattern.search(MODULES[m].read_text(encoding="utf-8"))}
    assert matches == {"resnet_jax.execution"}


def test_files_directly_in_experiments_are_programs():
    programs = [m for m in MODULES if room(m) == "experiments" and m != "experiments"]
    for module in programs:
        assert 'if __name__ == "__main__":' in MODULES[module].read_text(encoding="utf-8"), module
