"""Every form of --config is parsed, and every mistake on the command line is one sentence."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# A program with --config and --workdir that prints the parsed config, run once for each command
# line of stdin: importing JAX once is enough.
PROGRAM = """
import json, os, sys
from absl import flags
from experiments.cli import command_line, config_flag

def main(argv):
    command_line.no_arguments(argv)
    print(json.dumps(flags.FLAGS["config"].value.to_dict()))

results = []
for kind, argv in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv = ["program", *argv]
        flags.DEFINE_string("workdir", None, "A folder.")
        config_flag.define("A config.", is_study=kind == "study")
        command_line.run(main)
    os.close(write)
    said = open(read).read()
    results.append((os.waitstatus_to_exitcode(os.wait()[1]), said))
json.dump(results, sys.stdout)
"""
DIGITS, STUDY = "--config=configs/digits.py", "--config=configs/degradation_digits.py:one_rate"

# Valid command lines: (kind of config that the program takes, argv, {key: value}).
PARSED = {
    "a key": ("run", [DIGITS, "--config.steps=20"], {"steps": 20}),
    "a space": ("run", [DIGITS, "--config.steps", "20"], {"steps": 20}),
    "one dash": ("run", [DIGITS, "-config.steps", "20"], {"steps": 20}),
    "the last of two": ("run", [DIGITS, "--config.seed=1", "--config.seed=2"], {"seed": 2}),
    "true by name": ("run", [DIGITS, "--config.data.color"], {"data.color": True}),
    "false by name": ("run", [DIGITS, "--noconfig.data.std"], {"data.std": False}),
    "false": ("run", [DIGITS, "--config.data.std=false"], {"data.std": False}),
    "a tuple": ("run", [DIGITS, "--config.data.scales=(64,96)"], {"data.scales": [64, 96]}),
    "a bare tuple": ("run", [DIGITS, "--config.data.scales=64,96"], {"data.scales": [64, 96]}),
    "one value": ("run", [DIGITS, "--config.model.remat=2"], {"model.remat": [2]}),
    "words": ("run", [DIGITS, "--config.eval.views=center,ten_crop"],
              {"eval.views": ["center", "ten_crop"]}),
    "another length": ("run", [DIGITS, "--config.epochs=2"],
                       {"epochs": 2.0, "steps": None, "examples": None}),
    "a length in a space": ("run", [DIGITS, "--config.epochs", "2"],
                            {"epochs": 2.0, "steps": None}),
    "a flagfile": ("run", ["--flagfile=FLAGFILE", "--config.seed=4"],
                   {"epochs": 2.0, "steps": None, "seed": 4}),
    "a file with an argument": ("run", ["--config=configs/imagenet.py:modern"], {"epochs": 90.0}),
    "a study's base": ("study", [STUDY, "--config.base.epochs=2"],
                       {"base.epochs": 2.0, "base.steps": None}),
    "a study's axis": ("study", [STUDY, "--config.grid.model.depth=(8,14)"],
                       {"grid.model.depth": [8, 14]}),
    "a new axis": ("study", [STUDY, "--config.grid.schedule.rate=(0.1,0.2)"],
                   {"grid.schedule.rate": [0.1, 0.2], "grid.model.depth": [20, 56]}),
    "an exception": ("study", ["--config=configs/degradation_cifar10.py",
                               "--config.exceptions.resnet_110.set.schedule.warmup=none"],
                     {"exceptions.resnet_110.set.schedule.warmup": "none"}),
}  # fmt: skip

# Invalid command lines: (kind of config that the program takes, argv, pattern in the sentence).
REFUSED = {
    "a typo": ("run", [DIGITS, "--config.model.dpeth=20"], r"nearest: model\.depth"),
    "no such file": ("run", ["--config=configs/digit.py"], r"digit\.py is not a file.*digits\.py"),
    "not a number": ("run", [DIGITS, "--config.model.depth=deep"], "'deep' is not a whole number"),
    "not a boolean": ("run", [DIGITS, "--config.data.std=perhaps"], "is not true or false"),
    "half a tuple": ("run", [DIGITS, "--config.data.scales=(1,"], "is not a tuple of values"),
    "a group": ("run", [DIGITS, "--config.data=3"], "is a group of settings; give one of area, "),
    "a typo after no": ("run", [DIGITS, "--noconfig.data.sdt"], r"nearest: data\.std"),
    "no of a number": ("run", [DIGITS, "--noconfig.seed"], "for settings that are true or false"),
    "no value": ("run", [DIGITS, "--config.seed"], "Missing value for flag --config.seed"),
    "no file": ("run", ["--config.seed=3"], "--config.seed needs --config=FILE.py"),
    "a key before the file": ("run", ["--config.seed=3", DIGITS], "--config=FILE.py; put it after"),
    "two files": ("run", [DIGITS, "--config=configs/cifar10.py"], "is a second --config"),
    "an empty file name": ("run", ["--config="], "--config is empty; is a shell variable unset"),
    "an empty value": ("run", [DIGITS, "--config.data.dir="], "dir is empty; is a shell variable"),
    "an empty folder": ("run", [DIGITS, "--workdir="], "--workdir is empty; is a shell variable"),
    "an empty folder apart": ("run", [DIGITS, "--workdir", ""], "--workdir is empty; is a shell"),
    "an argument in vain": (
        "run", ["--config=configs/cifar10.py:paper"], "takes no argument; leave out :paper"
    ),
    "an unknown preset": ("run", ["--config=configs/imagenet.py:papr"], "nearest: paper"),
    "a typo in a flagfile": ("run", ["--flagfile=FLAGFILE", "--flagfile=TYPO"], r"nearest: seed"),
    "no flagfile": ("run", ["--flagfile=/nowhere/f"], "Unable to open flagfile"),
    "a study for a run": ("run", [STUDY, "--config.base.seed=1"], "is a study; run it with"),
    "a run for a study": ("study", [DIGITS, "--config.seed=1"], "is not a study"),
    "an axis of no key": ("study", [STUDY, "--config.grid.schedule.raet=(1,)"],
                          r"nearest: grid\.schedule\.rate"),
    "a syntax error": ("run", ["--config=SYNTAX"], "syntax.py, line 2: SyntaxError: "),
    "an unknown name": ("run", ["--config=NAME"], "name.py, line 3: NameError: name 'yy'"),
    "an unknown module": ("run", ["--config=IMPORT"], "import.py, line 1: ModuleNotFoundError: "),
    "no config": ("run", ["--config=DICT"], "returns dict instead of ConfigDict"),
    "no function": ("run", ["--config=NOTHING"], r"defines no get_config\(\)"),
    "a missing key": ("run", ["--config=LACKING"], "lacks seed; another version wrote it"),
    "an added key": ("run", ["--config=ADDED"], r"model\.depht, which is not a setting \(nearest"),
    "a value of another type": ("run", ["--config=TYPED"], "seed=True is not of the setting's"),
}  # fmt: skip

_CHANGED = "from configs import digits\ndef get_config():\n    c = digits.get_config()\n    {}\n    return c\n"  # noqa: E501
FILES = {
    "FLAGFILE": ("flags.txt", "--config=configs/digits.py\n--config.epochs=2\n"),
    "TYPO": ("typo.txt", "--config.sede=2\n"),
    "SYNTAX": ("syntax.py", "\ndef get_config(:\n"),
    "NAME": ("name.py", "xx = 1\ndef get_config():\n    return yy\n"),
    "IMPORT": ("import.py", "import no_such_module\n"),
    "DICT": ("dict.py", "def get_config():\n    return {}\n"),
    "NOTHING": ("nothing.py", "x = 1\n"),
    "LACKING": ("lacking.py", _CHANGED.format("del c['seed']")),
    "ADDED": ("added.py", _CHANGED.format("c.model.depht = 3")),
    "TYPED": ("typed.py", _CHANGED.format("c.seed = True")),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(exit code, output) of every command line above."""
    folder = tmp_path_factory.mktemp("configs")
    for name, content in FILES.values():
        (folder / name).write_text(content)

    def filled(argv):
        for name, (file, _) in FILES.items():
            argv = [re.sub(rf"={name}$", f"={folder / file}", argument) for argument in argv]
        return argv

    cases = PARSED | REFUSED
    asked = json.dumps([(kind, filled(argv)) for kind, argv, _ in cases.values()])
    done = subprocess.run(
        # ml_collections' own loader would raise a DeprecationWarning; JAX warns of every fork.
        [sys.executable, "-W", "error::DeprecationWarning", "-W", "ignore::RuntimeWarning", "-c", PROGRAM],  # noqa: E501
        cwd=ROOT, env=os.environ, input=asked, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", PARSED)
def test_the_command_line_sets_the_config(case, outcomes):
    code, said = outcomes[case]
    assert code == 0, said
    config = json.loads(said)
    for key, value in PARSED[case][2].items():
        actual = config
        for part in key.split("."):
            actual = actual[part]
        assert actual == value, key
        assert type(actual) is type(value)


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_on_the_command_line_are_one_sentence(case, outcomes):
    code, said = outcomes[case]
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.endswith((".\n", "?\n"))
    assert len(said.splitlines()) == 1
    assert re.search(REFUSED[case][2], said), said
