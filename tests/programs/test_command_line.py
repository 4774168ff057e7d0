"""Every form of --config is parsed, and every mistake on the command line is one sentence."""

import json
import re

import pytest

from tests import forks, tiny

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


def parse(folder, kind, argv):
    """Runs parsed.py with `argv`, in which names of FILES stand for files in `folder`."""
    for name, (file, content) in FILES.items():
        (folder / file).write_text(content)
        argv = [re.sub(rf"={name}$", f"={folder / file}", argument) for argument in argv]
    # ml_collections' own loader would raise a DeprecationWarning.
    environment = tiny.environment() | {"PYTHONWARNINGS": "error::DeprecationWarning"}
    return forks.run("tests.programs.parsed", [kind, *argv], environment)


@pytest.mark.parametrize(("kind", "argv", "expected"), PARSED.values(), ids=PARSED)
def test_the_command_line_sets_the_config(tmp_path, kind, argv, expected):
    done = parse(tmp_path, kind, argv)
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads(done.stdout)
    for key, value in expected.items():
        actual = config
        for part in key.split("."):
            actual = actual[part]
        assert actual == value, key
        assert type(actual) is type(value)


@pytest.mark.parametrize(("kind", "argv", "words"), REFUSED.values(), ids=REFUSED)
def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, kind, argv, words):
    done = parse(tmp_path, kind, argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith((".\n", "?\n"))
    assert len(done.stderr.splitlines()) == 1
    assert re.search(words, done.stderr)
