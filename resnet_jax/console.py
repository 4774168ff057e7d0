"""The command `resnet-jax PROGRAM FLAGS`: the programs of experiments/, outside a checkout.

    resnet-jax train --config=configs/digits.py --workdir=runs/digits

Each is `python -m experiments.PROGRAM` of a checkout, with the same flags and exit codes. A wheel
keeps experiments/ and configs/ in a folder of this package, which is on the import path of these
programs and of the processes that they start only.
"""

import os
import runpy
import sys

from resnet_jax import shipped
from resnet_jax.errors import is_missing_package, nearest, sentence

PROGRAMS = {
    "train": "train one run",
    "sweep": "run a study: every cell of a grid",
    "compare": "write a report on runs and studies",
    "describe": "describe a network before it is trained",
    "evaluate": "evaluate a trained network",
    "predict": "predict the classes of pictures",
    "features": "write the features of pictures or of a data set to a file",
    "probe": "compare the features of trained networks by classifiers on them",
    "convert": "convert a network that others trained to a run folder",
    "export": "write a network to a file that other programs read",
    "prepare": "prepare a data set",
    "shrink": "write a smaller copy of ImageNet, which is read faster",
}
_USAGE = "\n".join([
    "usage: resnet-jax PROGRAM FLAGS", "",
    *(f"  {name:<10} {does}" for name, does in PROGRAMS.items()), "",
    "resnet-jax PROGRAM --help lists a program's flags; resnet-jax --version prints the version.",
])  # fmt: skip


def main() -> int:
    """Runs the program named on the command line, and exits with its code."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("--help", "-h", "help"):
        print(_USAGE)
        return 0
    if name == "--version":
        import resnet_jax

        print(resnet_jax.__version__)
        return 0
    if name not in PROGRAMS:
        wrong = (
            f"{name!r} is not a program{nearest(name, PROGRAMS)}" if name else "PROGRAM is missing"
        )
        print(f"error: {wrong}; see resnet-jax --help.", file=sys.stderr)
        return 2
    _find_programs()
    sys.argv[1:] = arguments
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except ImportError as e:  # of an extra that the program needs at import
        if not is_missing_package(e):
            raise
        print(f"error: {sentence(e)}.", file=sys.stderr)
        return 2
    return 0


def _find_programs() -> None:
    """Adds the programs' folder to the import path of this process and of its children."""
    folder, given = str(shipped.programs()), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, given] if given else [folder])
    # Otherwise `python -m` would first search the working directory, which may have a configs/.
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.path.insert(0, folder)
    sys.path.append(os.getcwd())  # for imports of a user's config
