"""A program with --config and --workdir that prints the parsed config as JSON.

Its first argument is the kind of config that it takes, ``run`` or ``study``.
"""

import json
import sys

from absl import flags

from experiments.cli import command_line, config_flag


def main(argv):
    command_line.no_arguments(argv)
    print(json.dumps(flags.FLAGS["config"].value.to_dict()))


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    flags.DEFINE_string("workdir", None, "A folder.")
    config_flag.define("A config.", is_study=kind == "study")
    command_line.run(main)
