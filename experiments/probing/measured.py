"""Probes of the features of one trained network."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from resnet_jax import trained
from resnet_jax.allowed import Choices
from resnet_jax.analysis import examples, probes
from resnet_jax.analysis.probes import Features, Probe
from resnet_jax.networks.features import endpoints
from resnet_jax.runs import reader

KINDS: dict[str, Callable[[Features, Features, Features], Probe]] = {
    "linear probe": probes.linear,
    "nearest neighbours": probes.neighbours,
}
_HELD_OUT = 5  # without a validation split, a random fifth of the training examples chooses


@dataclasses.dataclass(frozen=True)
class Row:
    """The probes of one network's features at one endpoint.

    Attributes:
      network: the run's name.
      depth, shortcut: of the network.
      seed: of its weights.
      endpoint: see networks.features.
      own_error: the network's test error in percent; None before the test.
      probes: by kind.
    """

    network: str
    depth: int
    shortcut: str
    seed: int
    endpoint: str
    own_error: float | None
    probes: dict[str, Probe]


def of_run(
    run: reader.Run,
    network: str,
    seeds: int | None,
    names: Sequence[str] | None,
    data_dir: str | None,
) -> Iterator[list[Row]]:
    """Yields the rows of each seed of a run, none for a seed whose weights are not finite.

    Args:
      run: with a checkpoint.
      network: its name in the results.
      seeds: only so many, from the first; None: all.
      names: of endpoints, each once; None: stem and stages.
      data_dir: see trained.load.

    Raises:
      UserError: the run has no checkpoint, an endpoint is unknown or named twice, or the data set
        is missing.
    """
    seed, *others = seeds_of(run, seeds)
    first = trained.load(str(run.path), seed, data_dir=data_dir)
    known = list(endpoints(first.model))
    if names is not None:
        Choices(tuple(known)).check("--endpoints", names)
    chosen = names or known[:-2]
    splits = examples.SPLITS if first.config.data.validation else ("train", "test")
    # All seeds share one compiled function, and data that are read once.
    compute = examples.features_of(first, chosen, mean=True)
    with contextlib.ExitStack() as at_end:
        opened = [at_end.enter_context(examples.of_split(first, split)) for split in splits]
        yield _rows(run, network, seed, chosen, [_features(first, x, compute) for x in opened])
        for seed in others:
            loaded = trained.load(str(run.path), seed)
            by_split = [_features(loaded, given, compute) for given in opened]
            yield _rows(run, network, seed, chosen, by_split)


def seeds_of(run: reader.Run, most: int | None) -> range:
    """Returns the first `most` seeds of a run; None: all."""
    first, count = run.config["seed"], run.config["replicates"]
    return range(first, first + min(count, most or count))


def _features(
    run: trained.Trained, given: examples.Examples, compute: examples.Function
) -> dict[str, Features]:
    parts = list(examples.outputs(run, given, compute))
    labels = np.concatenate([numbers for numbers, _ in parts])
    return {
        name: Features(np.concatenate([values[name] for _, values in parts]), labels)
        for name in parts[0][1]
    }


def _rows(
    run: reader.Run,
    network: str,
    seed: int,
    names: Sequence[str],
    by_split: Sequence[dict[str, Features]],
) -> list[Row]:
    model, own = run.config["model"], reader.final_test_error(run, seed)
    rows = []
    for endpoint in names:
        train, *others = (features[endpoint] for features in by_split)
        if not all(np.isfinite(part.values).all() for part in (train, *others)):
            return []
        if len(others) == 1:
            train, held_out = _split(train)
            others = [held_out, *others]
        found = {kind: probe(train, *others) for kind, probe in KINDS.items()}
        rows.append(Row(network, model["depth"], model["shortcut"], seed, endpoint, own, found))
    return rows


def _split(train: Features) -> tuple[Features, Features]:
    order = np.random.default_rng(0).permutation(len(train.labels))  # sets may be in order of label
    is_held_out = order % _HELD_OUT == 0
    kept, held_out = ([a[mask] for a in train] for mask in (~is_held_out, is_held_out))
    return Features(*kept), Features(*held_out)
