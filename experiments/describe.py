"""Describes a network before training: its layers, parameters, mult-adds and projections.

    python -m experiments.describe --config=configs/imagenet.py --config.model.depth=50
    python -m experiments.describe --config=configs/imagenet.py --family
    python -m experiments.describe --config=configs/imagenet.py --execution

The paper's numbers stand beside ours if it gives them for the same network. --family describes all
of the paper's depths. --execution prints how a run would be computed on this machine's devices,
with every "auto" resolved; nothing else here uses a device. No data is read. --json prints JSON.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.cli import command_line, config_flag, tables
from experiments.report import paper
from resnet_jax import execution, settings
from resnet_jax.data import sets
from resnet_jax.errors import UserError, listing
from resnet_jax.networks import builders, summary
from resnet_jax.resolve import resolve

Description = dict[str, Any]  # ready for JSON

_CONFIG = config_flag.define("The network's config, for example configs/imagenet.py.")
_FAMILY = flags.DEFINE_bool("family", False, "Describe all of the paper's depths.")
_EXECUTION = flags.DEFINE_bool(
    "execution", False, "Print how a run would be computed on this machine's devices."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def describe(config: ConfigDict) -> Description:
    """Returns the structure and sizes of a resolved config's network."""
    model, image_shape = config.model, sets.image_shape(config.data)
    network = builders.from_config(model)
    sizes = summary.summarize(network, image_shape)
    published = paper.published_size(config.to_dict(), image_shape)
    return {
        "family": model.family,
        "depth": model.depth,
        "shortcut": model.shortcut,
        "cures": {
            key.removeprefix("model."): settings.get(config, key)
            for key in settings.CURES
            if settings.get(config, key) != settings.SETTINGS[key].implied
        },
        "block": network.arch.block,
        "stage_sizes": network.arch.stage_sizes,
        "image_shape": image_shape,
        "num_classes": model.num_classes,
        "parameters": sizes.parameters,
        "mult_adds": sizes.mult_adds,
        "projections": sizes.projections,
        "paper": dataclasses.asdict(published),
        "layers": [vars(layer) for layer in sizes.layers],
    }


def describe_family(config: ConfigDict) -> list[Description]:
    """Describes the config's network at each depth of the paper.

    Raises:
      UserError: the paper has no network of this family.
    """
    if config.model.family not in paper.STUDIED:
        raise UserError(
            f"--family describes the paper's depths, but model.family={config.model.family!r} has "
            f"none; allowed are {listing(paper.STUDIED, 'and')}."
        )
    networks = []
    for depth in paper.STUDIED[config.model.family]:
        deeper = config.copy_and_resolve_references()
        deeper.model.depth = depth
        networks.append(describe(deeper))
    return networks


# ------------------------------------------------------------------------------ as text


def network_text(network: Description) -> tables.Parts:
    """Returns a network's layer table, with its totals and the paper's."""
    rows = [["", "output", "blocks", "layers", "projections", "parameters", "mult-adds"]]
    for layer in network["layers"]:
        rows.append(
            [
                layer["name"],
                _shape(layer["output_shape"]),
                str(layer["blocks"] or ""),
                str(layer["convolutions"]),
                str(layer["projections"]),
                f"{layer['parameters']:,}",
                _mult_adds(layer["mult_adds"]),
            ]
        )
    total = [sum(layer[key] for layer in network["layers"]) for key in ("blocks", "convolutions")]
    rows.append(["total", "", *map(str, total), str(network["projections"]), *_sizes(network)])
    rows.append(["paper", "", "", "", "", *_paper_sizes(network)])
    return [_title(network, str(network["depth"])), "", tables.aligned(rows, left=2)]


def family_text(networks: Sequence[Description]) -> tables.Parts:
    """Returns one row per network, the paper's sizes beside ours."""
    rows = [["depth", "block", "blocks", "projections"]]
    rows[0] += ["parameters", "(paper)", "mult-adds", "(paper)"]
    for network in networks:
        ours, papers = _sizes(network), _paper_sizes(network)
        rows.append(
            [
                str(network["depth"]),
                network["block"],
                " ".join(map(str, network["stage_sizes"])),
                str(network["projections"]),
                *(ours[0], papers[0], ours[1], papers[1]),
            ]
        )
    return [_title(networks[0], "family"), "", tables.aligned(rows, left=3)]


def _title(network: Description, member: str) -> str:
    plain = network["shortcut"] == "none"
    kind = "plain" if plain else f"residual, shortcut {network['shortcut']}"
    cures = "".join(f", {k}={settings.show(v)}" for k, v in network["cures"].items())
    shape, classes = _shape(network["image_shape"]), f"{network['num_classes']} classes"
    return f"{network['family']} {member} ({kind}{cures}), {shape} images, {classes}"


def _sizes(network: Description) -> tuple[str, str]:
    return f"{network['parameters']:,}", _mult_adds(network["mult_adds"])


def _paper_sizes(network: Description) -> tuple[str, str]:
    parameters, mult_adds = network["paper"]["parameters"], network["paper"]["mult_adds"]
    return (
        "-" if parameters is None else f"{parameters:,}",
        "-" if mult_adds is None else f"{mult_adds / 1e9:g}e9",  # the paper's digits
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _mult_adds(number: int) -> str:
    """Returns three digits and an exponent that is a multiple of 3: 3.86e9, 11.6e9, 40.6e6."""
    mantissa, exponent = f"{number:.2e}".split("e")
    shift = int(exponent) % 3
    digits = f"{float(mantissa) * 10**shift:.{2 - shift}f}"
    return f"{digits}e{int(exponent) - shift}" if number >= 1000 else str(number)


# -------------------------------------------------------------------------------- program


def main(argv: Sequence[str]) -> None:
    """Prints the description."""
    command_line.no_arguments(argv)
    config = resolve(command_line.required(_CONFIG))
    text: tables.Parts
    if _EXECUTION.value:
        content = execution.decide(config).facts()
        rows = [[name, str(value)] for name, value in content.items()]
        text = [tables.aligned([["decision", "value"], *rows])]
    elif _FAMILY.value:
        networks = describe_family(config)
        content = {"family": config.model.family, "networks": networks}
        text = family_text(networks)
    else:
        content = describe(config)
        text = network_text(content)
    if _JSON.value:
        print(json.dumps(content, indent=2))
    else:
        tables.print_parts(text)


if __name__ == "__main__":
    command_line.run(main)
