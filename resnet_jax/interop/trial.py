"""Finds the conventions of a network by what it computes for given images."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import UserError, listing, nearest
from resnet_jax.interop import weights
from resnet_jax.interop.names import Named
from resnet_jax.interop.schemes import Conventions
from resnet_jax.networks.architectures import BOTTLENECK_STRIDES, PADDED, STEMS
from resnet_jax.networks.features import endpoints, features

TOLERANCE = 1e-4  # of the largest number of an endpoint: more than rounding, less than a convention
_EPSILONS = (1e-5, 1.001e-5, 1e-4, 1e-3)


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What a network computes with one combination of conventions.

    Attributes:
      network: with these conventions.
      errors: by endpoint, in order: the largest difference from the expected numbers, as a share of
        the largest of them.
    """

    network: weights.Imported
    errors: Mapping[str, float]

    @property
    def fits(self) -> bool:
        """Whether every endpoint is within TOLERANCE."""
        return max(self.errors.values()) < TOLERANCE

    @property
    def differs_at(self) -> str:
        """The first endpoint that is not within TOLERANCE; "" if all are."""
        return next((name for name, error in self.errors.items() if not error < TOLERANCE), "")


def trials(
    named: Named,
    path: str,
    assumed: Conventions,
    given: Mapping[str, Any],
    images_BHWC: np.ndarray,
    expected: Mapping[str, np.ndarray],
) -> Iterator[Trial]:
    """Yields a trial of every combination of conventions, the assumed one first.

    Args:
      named: the tensors.
      path: of the file, for messages.
      assumed: the conventions to begin with.
      given: those that are known, by name; they are not varied.
      images_BHWC: float32, normalised, with colours in the order in which pictures will be given to
        the network here.
      expected: what the network computes for them, by endpoint; see networks.features. Activations
        are (B, H, W, C).

    Raises:
      UserError: an endpoint is unknown or has another shape.
    """
    first = weights.of_named(named, path, dataclasses.replace(assumed, **given))
    known = endpoints(first.model)
    for name in expected:
        if name not in known:
            raise UserError(
                f"expected {name!r} is not an endpoint of this network; allowed are "
                f"{listing(known)}{nearest(name, known)}."
            )
    names = [name for name in known if name in expected]
    choices = {k: v for k, v in _choices(first).items() if k not in given}
    # The assumed value of each convention comes first.
    for name, values in choices.items():
        value = getattr(first.conventions, name)
        choices[name] = [value, *(each for each in values if each != value)]
    in_variables = [k for k in ("order", "new_channels", "shortcut") if k in choices]
    in_model = [k for k in choices if k not in in_variables]
    for chosen in itertools.product(*(choices[k] for k in in_variables)):
        changes: dict[str, Any] = dict(zip(in_variables, chosen, strict=True))
        conventions = dataclasses.replace(first.conventions, **changes)
        network = weights.of_named(named, path, conventions)
        for others in itertools.product(*(choices[k] for k in in_model)):
            yield _trial(
                _with(network, dict(zip(in_model, others, strict=True))),
                images_BHWC,
                {name: expected[name] for name in names},
            )


def _choices(network: weights.Imported) -> dict[str, list[Any]]:
    """Returns the values of each convention that acts in a network."""
    model = network.model
    layers = PADDED if STEMS[model.stem] > 1 else ("blocks",)
    choices: dict[str, list[Any]] = {
        "order": ["RGB", "BGR"],
        "same_padding": [
            chosen
            for count in range(len(layers) + 1)
            for chosen in itertools.combinations(layers, count)
        ],
    }
    if model.arch.block == "bottleneck":
        choices["bottleneck_stride"] = list(BOTTLENECK_STRIDES)
    if model.norm == "batch":
        choices["epsilon"] = list(_EPSILONS)
    if model.shortcut in ("none", "A"):
        choices["shortcut"] = ["A", "none"]
        choices["new_channels"] = ["after", "around"]
    return choices


def _with(network: weights.Imported, changes: Mapping[str, Any]) -> weights.Imported:
    """Returns a network with conventions that change the model and not the variables."""
    attributes = {"epsilon": "bn_epsilon"}
    fields = {attributes.get(name, name): value for name, value in changes.items()}
    return dataclasses.replace(
        network,
        model=dataclasses.replace(network.model, **fields),
        settings={**network.settings, **fields},
        conventions=dataclasses.replace(network.conventions, **changes),
    )


def _trial(
    network: weights.Imported, images_BHWC: np.ndarray, expected: Mapping[str, np.ndarray]
) -> Trial:
    # Not under jit: every combination would be compiled anew.
    found = features(network.model, network.variables, jax.numpy.asarray(images_BHWC), [*expected])
    errors = {}
    for name, wanted in expected.items():
        ours = np.asarray(found[name])
        if ours.shape != wanted.shape:
            raise UserError(
                f"expected {name!r} has the shape {wanted.shape}, but this network's is "
                f"{ours.shape}."
            )
        scale = max(float(np.abs(wanted).max()), 1e-30)
        errors[name] = float(np.abs(ours - wanted).max()) / scale
    return Trial(network, errors)
