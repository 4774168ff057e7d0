"""Finds which code base named a file's tensors, and each tensor's place in our network."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.interop.schemes import SCHEMES, Place, Scheme

if TYPE_CHECKING:
    import onnx

_FEW = 3  # names in a message
_FIRST = {"stem_conv", "stem_conv1"}  # convolutions that begin a network


@dataclasses.dataclass(frozen=True)
class Named:
    """The tensors of one network.

    Attributes:
      scheme: the code base that named them, a key of SCHEMES.
      prefix: what precedes every name in the file, such as "state_dict.module.".
      tensors: place -> array, in the file's layout. Every stage and block is numbered from 1.
      names: place -> the tensor's name in the file.
      elsewhere: names of the file's tensors outside the prefix, such as an optimiser's.
      graph: the model that the network was found in; None if its names tell the places.
      endpoints: see proof.check; of a graph.
      without_norm: modules of convolutions that have no norm in a graph with norms.
    """

    scheme: str
    prefix: str
    tensors: Mapping[Place, np.ndarray]
    names: Mapping[Place, str]
    elsewhere: tuple[str, ...]
    graph: "onnx.ModelProto | None" = None
    endpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    without_norm: tuple[str, ...] = ()


def find(tensors: Mapping[str, np.ndarray], path: str, prefix: str | None = None) -> Named:
    """Finds the code base and the prefix that fit a file's tensors.

    Args:
      tensors: name -> array.
      path: of the file, for messages.
      prefix: see Named; None: found, if only one fits.

    Raises:
      UserError: no code base fits, two prefixes do, or a tensor under the prefix has no place.
    """
    candidates = [
        (count, scheme, start)
        for scheme in SCHEMES
        for start, count in _prefixes(tensors, SCHEMES[scheme]).items()
        if prefix in (None, start)
    ]
    if not candidates:
        titles = "; ".join(scheme.title for scheme in SCHEMES.values() if scheme.layers)
        where = "" if prefix is None else f" under the prefix {prefix!r}"
        raise UserError(
            f"{path} holds no network whose names are known{where} (it has "
            f"{_some(tensors)}); known are {titles}."
        )
    most = max(count for count, _, _ in candidates)
    best = [(scheme, start) for count, scheme, start in candidates if count == most]
    starts = sorted({start for _, start in best})
    if len(starts) > 1:
        raise UserError(
            f"{path} holds several networks, under {' and '.join(map(repr, starts))}; choose one "
            f"with prefix={starts[0]!r}."
        )
    return _named(tensors, *best[0], path)


def _prefixes(tensors: Iterable[str], scheme: Scheme) -> dict[str, int]:
    """Returns how many tensors have a place, by the prefix of their names."""
    counts: dict[str, int] = {}
    for name in tensors:
        for start in _starts(name):
            if scheme.place(_bare(name[start:], scheme)) is not None:
                counts[name[:start]] = counts.get(name[:start], 0) + 1
    # "layer1.0.conv1.weight" looks like a stem, too: a network has both ends.
    return {
        start: number
        for start, number in counts.items()
        if "logits" in (layers := _layers(tensors, scheme, start)) and layers & _FIRST
    }


def _layers(tensors: Iterable[str], scheme: Scheme, prefix: str) -> set[str]:
    places = (
        scheme.place(_bare(name.removeprefix(prefix), scheme))
        for name in tensors
        if name.startswith(prefix)
    )
    return {place.layer for place in places if place is not None}


def _starts(name: str) -> list[int]:
    """Returns the positions in a name at which its part without a prefix may start."""
    return [0, *(match.end() for match in re.finditer(r"[./]", name))]


def _bare(name: str, scheme: Scheme) -> str:
    """Removes the name of a Flax collection."""
    for collection in scheme.collections:
        name = name.removeprefix(f"{collection}.").removeprefix(f"{collection}/")
    return name


def _named(tensors: Mapping[str, np.ndarray], scheme: str, prefix: str, path: str) -> Named:
    found: dict[Place, str] = {}
    strangers, elsewhere = [], []
    for name in tensors:
        bare = _bare(name.removeprefix(prefix), SCHEMES[scheme])
        if not name.startswith(prefix):
            elsewhere.append(name)
        elif (place := SCHEMES[scheme].place(bare)) is not None:
            if place in found:
                raise UserError(f"{path} has {found[place]!r} twice, the other as {name!r}.")
            found[place] = name
        elif not re.fullmatch(SCHEMES[scheme].ignored, bare):
            strangers.append(name)
    if strangers:
        close = difflib.get_close_matches(strangers[0], found.values(), n=1)
        hint = f" (nearest: {close[0]})" if close else ""
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UserError(
            f"{path} has a tensor that has no place in a network with {SCHEMES[scheme].title}: "
            f"{strangers[0]!r}{hint}{more}."
        )
    found = _of_deep_stem(_by_stage(found, tensors, scheme))
    return Named(
        scheme=scheme,
        prefix=prefix,
        tensors={place: tensors[name] for place, name in found.items()},
        names=found,
        elsewhere=tuple(elsewhere),
    )


def _of_deep_stem(found: dict[Place, str]) -> dict[Place, str]:
    """Numbers the norm behind a deep stem, whose name in PyTorch is that of other stems' norm."""
    if not any(place.layer == "stem_conv3" for place in found):
        return found
    return {
        place._replace(layer="stem_norm3") if place.layer == "stem_norm" else place: name
        for place, name in found.items()
    }


def _by_stage(
    found: dict[Place, str], tensors: Mapping[str, np.ndarray], scheme: str
) -> dict[Place, str]:
    """Numbers blocks from 1 in each stage, if the code base counts them through the network."""
    if any(place.stage for place in found):
        return found
    filters = {
        place.block: tensors[name].shape[0 if SCHEMES[scheme].is_transposed else -1]
        for place, name in found.items()
        if place[2:] == ("conv1", "kernel")
    }
    # Each stage has its own number of filters, and they grow.
    stages = {number: stage for stage, number in enumerate(sorted(set(filters.values())), start=1)}
    first = {
        stage: min(b for b in filters if stages[filters[b]] == stage) for stage in stages.values()
    }

    def renumbered(place: Place) -> Place:
        if not place.block or place.block not in filters:
            return place
        stage = stages[filters[place.block]]
        return place._replace(stage=stage, block=place.block - first[stage] + 1)

    return {renumbered(place): name for place, name in found.items()}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _FEW} more" if len(listed) > _FEW else ""
    return ", ".join(map(repr, listed[:_FEW])) + more if listed else "no tensors"
