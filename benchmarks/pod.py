"""Whether a training step fits on many chips, what they send each other, and how far it scales.

    python -m benchmarks.pod --target=v5e:16x16 --family=imagenet --depth=50 --batch_size=16384
    python -m benchmarks.pod --topologies=v5e:2x2,v5e:4x4,v5e:16x16 --family=cifar --depth=56

The run's own step is compiled for every chip, on any machine (experiments/pods/target.py), and the
program is read; nothing runs. The bounds are those of the manufacturer's peak rates: a step takes
longer. The efficiency is the images per second and chip, divided by those of the first row. With
--target that row is one host with as many images per chip.

--seeds_per_chip=1 trains as many seeds as there are chips, each with a batch of its own.
"""

from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from benchmarks import results
from benchmarks.peers import ours
from experiments.cli import command_line, tables
from experiments.pods import target
from experiments.pods.collectives import Collective
from experiments.pods.forecast import Forecaster
from experiments.pods.program import Needs
from experiments.pods.target import Target
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve

_TOPOLOGIES = flags.DEFINE_list("topologies", None, "Several targets, for one table.")
_FAMILY = flags.DEFINE_enum("family", "imagenet", ["cifar", "imagenet"], "Family of the network.")
_DEPTH = flags.DEFINE_integer("depth", 50, "Depth of the network.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images per step and seed on the last target; by default the recipe's.",
    lower_bound=1,
)  # fmt: skip
_SEEDS = flags.DEFINE_integer(
    "seeds_per_chip", 0, "Seeds per chip; 0 for one seed on all chips.", lower_bound=0
)
_FSDP = flags.DEFINE_integer("fsdp", 1, "Chips that share parameters (mesh.fsdp).", lower_bound=1)
_DTYPE = results.define_dtype()

_TIMES = ("matrix", "memory", "links", "exposed", "bound")
_HEADINGS = ["chips", "images", "memory", "of", "matrix ms", "memory ms", "links ms", "exposed ms",
             "bound ms", "bound by", "images/s", "efficiency"]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    targets = _targets()
    rows: list[results.Row] = []
    for each in targets:
        rows.append(_row(each, _config(each, targets[-1])))
        if rows[0]["fits"] and rows[-1]["fits"]:
            rows[-1]["efficiency"] = _per_chip(rows[-1]) / _per_chip(rows[0])
        logging.info("%s: done", each)
    chip = targets[-1].chip
    about = {
        "network": f"{_FAMILY.value} {_DEPTH.value}, {_DTYPE.value}, "
        + (f"{_SEEDS.value} seeds per chip" if _SEEDS.value else "one seed on all chips"),
        "memory": "GB of 1e9 bytes that the step takes on a device, of those it has",
        "exposed": "the links' time during which a chip does nothing else",
        "bound": "max(matrix, memory, links - exposed) + exposed; a step takes longer",
        "peaks": f"{chip.peaks['bfloat16']:g} TFLOP/s, {chip.bandwidth:g} GB/s of memory, "
        f"{chip.sends:g} GB/s sent, from {chip.source}",
        "efficiency": f"images per second and chip over those of {targets[0]}",
        "compiled, not run": ", ".join(map(str, targets)),
    }
    _print_collectives(rows)
    results.publish(_HEADINGS, _show, rows, about, source=results.COMPILED)
    return 0


def _targets() -> list[Target]:
    """Returns the targets of the table's rows; raises UserError if there are none."""
    if bool(_TOPOLOGIES.value) == bool(target.TARGET.value):
        raise UserError("Give either --target=CHIPS or --topologies=CHIPS,CHIPS.")
    if _TOPOLOGIES.value:
        found = [target.parse(text, "topologies") for text in _TOPOLOGIES.value]
    else:
        last = target.parse(target.TARGET.value or "")
        found = list(dict.fromkeys([target.one_host(last.name), last]))
    for each in found:
        if not each.shape:
            raise UserError(f"{each} is one chip; give a topology, such as {target.EXAMPLES}.")
    if len({each.name for each in found}) > 1:
        raise UserError("--topologies has several kinds of chips; a table is of one kind.")
    return found


def _config(each: Target, last: Target) -> ConfigDict:
    """Returns the config of a row: the last one's, with as many images per chip."""
    config = ours.config(
        _FAMILY.value, _DEPTH.value, dtype=_DTYPE.value, precision="default",
        batch_size=_BATCH_SIZE.value,
    )  # fmt: skip
    config.mesh.fsdp = _FSDP.value
    if _SEEDS.value:
        config.replicates = _SEEDS.value * each.chips
    else:
        share, rest = divmod(config.batch_size, last.chips)
        if rest:
            raise UserError(
                f"--batch_size={config.batch_size} does not divide by the {last.chips} chips of "
                f"{last}; allowed are multiples of {last.chips}."
            )
        config.batch_size = share * each.chips
    return resolve(config)


def _row(each: Target, config: ConfigDict) -> results.Row:
    row: results.Row = {
        "target": str(each), "chips": each.chips,
        "capacity_bytes": each.chip.per_device().memory,
        "efficiency": None, "collectives": [],
        "images_per_chip": config.replicates * config.batch_size // each.chips,
    }  # fmt: skip
    found = Forecaster(each).of_step(config)
    needs, least = found.needs, found.step
    row |= {"memory_bytes": found.memory, "fits": needs is not None}
    if needs is None or least is None:
        return row
    return row | {
        "mesh": dict(needs.mesh.shape),
        "temporaries_bytes": needs.temporaries,
        "flops": needs.flops,
        "moved_bytes": needs.moved,
        "sent_bytes": sum(c.sent for c in needs.collectives) / needs.steps,
        "collectives": _collectives(needs),
        "matrix_seconds": least.matrix,
        "memory_seconds": least.memory,
        "links_seconds": least.links,
        "exposed_seconds": least.exposed,
        "bound_seconds": least.step,
        "bound_by": least.resource,
    }


def _collectives(needs: Needs) -> list[dict[str, object]]:
    """Returns the collectives of a step, those of one kind, dtype and axis together."""
    together: dict[tuple[object, ...], list[Collective]] = {}
    for each in needs.collectives:
        key = (each.kind, tuple(each.sizes), each.axes, each.chips, each.is_overlapped)
        together.setdefault(key, []).append(each)
    return [
        {
            "kind": same[0].kind,
            "dtypes": [*same[0].sizes],
            "axes": [*same[0].axes],
            "chips": same[0].chips,
            "overlapped": same[0].is_overlapped,
            "count": sum(each.times for each in same) / needs.steps,
            "bytes": sum(each.times * each.size for each in same) / needs.steps,
        }
        for same in together.values()
    ]


def _print_collectives(rows: Sequence[results.Row]) -> None:
    headings = ["chips", "collective", "dtype", "axis", "of chips", "times a step", "MB a step"]
    cells = [
        [row["target"], each["kind"] + (", overlapped" if each["overlapped"] else ""),
         "+".join(each["dtypes"]), "+".join(each["axes"]), str(each["chips"]),
         f"{each['count']:g}", f"{each['bytes'] / 1e6:.3f}"]
        for row in rows for each in row["collectives"]
    ]  # fmt: skip
    tables.print_parts([tables.aligned([headings, *cells]), ""])


def _per_chip(row: results.Row) -> float:
    return row["images_per_chip"] / row["bound_seconds"]


def _show(row: results.Row) -> list[str]:
    head = [
        row["target"],
        str(row["images_per_chip"]),
        f"{row['memory_bytes'] / 1e9:.2f}",
        f"{row['capacity_bytes'] / 1e9:.1f}",
    ]
    if not row["fits"]:
        return [*head, "does not fit", *["-"] * (len(_HEADINGS) - len(head) - 1)]
    efficiency = row["efficiency"]
    return [
        *head,
        *(f"{1e3 * row[f'{name}_seconds']:.3f}" for name in _TIMES),
        row["bound_by"],
        f"{row['chips'] * _per_chip(row):,.0f}",
        "-" if efficiency is None else f"{efficiency:.3f}",
    ]


if __name__ == "__main__":
    command_line.run(main)
